"""SGD with Nesterov momentum, torch's."""

from typing import Literal

from deit_fast.recipe.sections.base import DecayRate
from deit_fast.recipe.sections.optim import Optim


class SGDOptim(Optim):
    """The values of SGD."""

    name: Literal["sgd"] = "sgd"
    """The optimizer. sgd: torch's, fused, with weight decay added to the gradient."""
    momentum: DecayRate = 0.9
    """Nesterov momentum; 0 is none."""


SECTION = SGDOptim
