"""SGD with momentum and coupled weight decay, which is added to the gradient after clipping: torch's fused one."""

from collections.abc import Iterable
from typing import Any

import torch

from deit_fast.optim.base import Setup
from deit_fast.optim.clipped import Clipped
from deit_fast.recipe.sections import SGDOptim


class SGD(Clipped, torch.optim.SGD):
    """torch's SGD with what a run asks of an optimizer: see `Clipped`."""

    def __init__(self, params: Iterable[Any], max_grad_norm: float | None, **options: Any) -> None:
        super().__init__(params, max_grad_norm, **options)
        # From zeros the first step is torch's own. Left to torch, the buffers would begin uninitialised, and a first
        # step that is skipped would leave them so for the second.
        for group in self.param_groups:
            for param in group["params"] if group["momentum"] else ():
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)

    def move(self) -> None:
        self.move_as(torch.optim.SGD)


def build(section: SGDOptim, setup: Setup) -> SGD:
    """The optimizer of a recipe with optim.name='sgd'."""
    momentum = section.momentum
    return SGD(setup.groups, momentum=momentum, nesterov=momentum > 0, fused=True, **setup.options)
