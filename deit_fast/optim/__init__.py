"""Optimizers behind one interface: LAMB with apex's arithmetic, and torch's fused AdamW and SGD.

In: a model and a recipe's optim section. Out: a `RecipeOptimizer` (base.py), which clips gradients, skips steps whose
gradients are not finite, and updates the weights' moving average. build.py calls the module with the name of the
recipe's optim.name: lamb.py (kernels: lamb_triton.py), or adamw.py and sgd.py (on clipped.py). sharding.py handles
weights that are sharded over processes, compute_copy.py weights that have a bf16 copy.
"""
