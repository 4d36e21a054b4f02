"""The networks: timm's modules and names, with the parts that DeiT III needs and timm lacks.

In: a recipe's model section. Out: an `ImageModel`, images [B, 3, S, S] -> logits [B, K]. build.py has `build_model`,
and the interface of a family (`ModelFamily`). A family is a module with a FAMILY: deit3.py and deit.py (on vit.py),
cait.py, resmlp.py, patchconvnet.py. They share stochastic_depth.py, stem.py, recompute.py and state_dicts.py;
initialise.py draws the weights of all. block.py has the transformers' block; block_ops.py and block_kernels.py have the
operations that the block's training runs on a GPU.
"""

from deit_fast.models.import_timm import timm

__all__ = ["timm"]
