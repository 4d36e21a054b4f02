"""SGD with momentum: torch's fused implementation. Its weight decay is added to the clipped gradient."""

from collections.abc import Iterable
from typing import Any

import torch

from deit_fast.optim.base import Setup
from deit_fast.optim.clipped import Clipped
from deit_fast.recipe.sections import SGDOptim


class SGD(Clipped, torch.optim.SGD):
    """torch's SGD with the duties of a `RecipeOptimizer`: see `Clipped`."""

    def __init__(self, params: Iterable[Any], max_grad_norm: float | None, **options: Any) -> None:
        super().__init__(params, max_grad_norm, **options)
        # Momentum buffers start at zero, which makes the first step torch's own. Buffers that torch makes are
        # uninitialised, and a skipped first step would leave them so for the second step.
        for group in self.param_groups:
            for param in group["params"] if group["momentum"] else ():
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)

    def move(self) -> None:
        self.move_as(torch.optim.SGD)


def build(section: SGDOptim, setup: Setup) -> SGD:
    """The optimizer of a recipe with optim.name='sgd'."""
    momentum = section.momentum
    return SGD(setup.groups, momentum=momentum, nesterov=momentum > 0, fused=True, **setup.options)
