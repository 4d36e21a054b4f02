"""Optimizers: LAMB as apex computes it, and torch's fused AdamW and SGD, all behind one interface.

In: a model and a recipe's optim section. Out: a `RecipeOptimizer` (base.py), which clips, skips steps that are not
finite and moves the weights' average. build.py makes it of the module that is called as the recipe's optim.name:
lamb.py (kernels: lamb_triton.py), or adamw.py and sgd.py (on clipped.py). sharding.py and compute_copy.py are about
weights that are spread over processes, or have a bf16 copy.
"""
