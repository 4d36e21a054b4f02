"""AdamW (arXiv:1711.05101), torch's."""

from typing import Literal

from deit_fast.recipe.sections.base import DecayRate, Positive
from deit_fast.recipe.sections.optim import Optim


class AdamWOptim(Optim):
    """The values of AdamW."""

    name: Literal["adamw"] = "adamw"
    """The optimizer. adamw: torch's, fused."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""


SECTION = AdamWOptim
