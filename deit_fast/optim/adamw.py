"""AdamW (arXiv:1711.05101) with decoupled weight decay: torch's fused implementation."""

import torch

from deit_fast.optim.base import Setup
from deit_fast.optim.clipped import Clipped
from deit_fast.recipe.sections import AdamWOptim


class AdamW(Clipped, torch.optim.AdamW):
    """torch's AdamW with the duties of a `RecipeOptimizer`: see `Clipped`."""

    def move(self) -> None:
        self.move_as(torch.optim.AdamW)


def build(section: AdamWOptim, setup: Setup) -> AdamW:
    """The optimizer of a recipe with optim.name='adamw'."""
    return AdamW(setup.groups, betas=section.betas, eps=section.eps, fused=True, **setup.options)
