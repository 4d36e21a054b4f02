"""The learning rate as a pure function of the step."""

import math

from deit_fast.sections import Schedule


def learning_rate(schedule: Schedule, peak: float, step: int, steps_per_epoch: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    Linear warmup from warmup_lr, then a cosine to min_lr whose phase counts from the start of the run, not from the
    end of the warmup (timm CosineLR, warmup_prefix=False, as facebookresearch/deit calls it). The default follows
    every step: a resumed run goes on exactly where it was. With reference_epoch_steps, the rate of epoch e is the
    curve's at e - 1, as the reference's loop computes it, so that its first two epochs both train at warmup_lr.
    """
    epoch = step / steps_per_epoch
    if schedule.reference_epoch_steps:
        epoch = max(math.floor(epoch) - 1, 0)
    if epoch < schedule.warmup_epochs:
        return schedule.warmup_lr + epoch / schedule.warmup_epochs * (peak - schedule.warmup_lr)
    progress = min(epoch / schedule.epochs, 1.0)
    return schedule.min_lr + 0.5 * (peak - schedule.min_lr) * (1.0 + math.cos(math.pi * progress))


def total_steps(schedule: Schedule, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run; part of an epoch is rounded up."""
    return math.ceil(schedule.epochs * steps_per_epoch - 1e-9)
