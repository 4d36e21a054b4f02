"""The section `schedule`: the learning rate over time, and with it the length of the run."""

from collections.abc import Iterator
from typing import Literal

from deit_fast.recipe.sections.base import NonNegative, Positive, Section


class Schedule(Section):
    """The learning rate over time; deit_fast/training/schedule.py has the formula."""

    epochs: Positive = 800
    """Length of the run in epochs; fractions are allowed."""
    warmup_epochs: NonNegative = 5
    """Epochs of linear warmup from warmup_lr to lr."""
    warmup_lr: NonNegative = 1e-6
    """Learning rate of the first step."""
    min_lr: NonNegative = 1e-5
    """Learning rate at the end of the cosine."""
    warmup_prefix: bool = False
    """Whether the cosine's phase starts after the warmup (deit3-jax, mmpretrain) instead of with the run (timm)."""
    update: Literal["step", "epoch", "epoch_after_warmup"] = "step"
    """How often the rate changes. epoch: at the start of each (PASSL). epoch_after_warmup: mmpretrain's."""
    reference_epoch_steps: bool = False
    """Step once per epoch, one epoch late, as facebookresearch/deit does, instead of every step."""

    def problems(self) -> Iterator[str]:
        if self.warmup_epochs >= self.epochs:
            yield (f"schedule.warmup_epochs={self.warmup_epochs:g}: expected less than schedule.epochs={self.epochs:g}")
        if self.reference_epoch_steps and (self.update != "step" or self.warmup_prefix):
            yield (
                "schedule.reference_epoch_steps=true: expected schedule.update='step' and "
                "schedule.warmup_prefix=false, because it is a curve of its own"
            )
