"""LAMB (arXiv:1904.00962), by the arithmetic of apex FusedLAMB."""

from typing import Literal

from deit_fast.recipe.sections.base import DecayRate, Positive
from deit_fast.recipe.sections.optim import Optim


class LambOptim(Optim):
    """The values of LAMB."""

    name: Literal["lamb"] = "lamb"
    """The optimizer. lamb: the arithmetic of apex FusedLAMB."""
    split_qkv: bool = False
    """A trust ratio each for query, key and value, as deit3-jax has, where the fused weight has one."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""


SECTION = LambOptim
