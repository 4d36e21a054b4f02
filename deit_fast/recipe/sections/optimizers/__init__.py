"""The optimizers of a recipe: a module per optimizer, whose SECTION lists its fields. `deit_fast.optim` builds them."""
