"""The learning rate as a pure function of the step; no other module decides it.

The loop calls `learning_rate` for every step and passes the result to the step, which scales it for each group of
weights (optim/build.py: optim.layer_decay). optim.lr is the peak for run.global_batch and is not rescaled; the curve is
the recipe's `schedule`. `lr` in metrics.jsonl is the rate of the last step done: the line of step N has learning_rate
at N - 1. `deit-fast show` prints the rates of any recipe.
"""

import math

from deit_fast.recipe.sections import Schedule


def learning_rate(schedule: Schedule, peak: float, step: int, steps_per_epoch: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0; `peak` is optim.lr.

    With t in epochs (step / steps_per_epoch), w = warmup_epochs, T = epochs, and s = w with warmup_prefix, else 0:

        warmup_lr + (peak - warmup_lr) * t / w                               while t < w
        min_lr + (peak - min_lr) / 2 * (1 + cos(pi * (t - s) / (T - s)))     after that

    With warmup_prefix=false the cosine's phase starts at step 0 (timm CosineLR as facebookresearch/deit calls it). In a
    run with a warmup, the rate then rises to just below the peak and drops at t = w to the second line. With
    warmup_prefix=true (optax warmup_cosine_decay_schedule in deit3-jax, mmpretrain) the rate at t = w is the peak. In
    both cases min_lr would be the rate of the step after the last.

    `update` says where the curve is sampled: at every step, at the start of the epoch (PASSL), or at every step of the
    warmup and then at the start of the epoch (mmpretrain). With reference_epoch_steps, epoch e uses the curve at e - 1,
    as the reference's loop does: its first two epochs both train at warmup_lr.

    Sampling at every step is the default, for three reasons: the rate does not jump by a fifth of its peak at each
    epoch of the warmup, no epoch is spent at warmup_lr, where nothing is learned, and the rate does not depend on the
    length of an epoch. The reference restarts its scheduler one epoch too far when it resumes; a pure function has no
    state to restart.
    """
    epoch = step / steps_per_epoch
    if schedule.reference_epoch_steps:
        epoch = max(math.floor(epoch) - 1, 0)
    elif schedule.update == "epoch":
        epoch = math.floor(epoch)
    elif schedule.update == "epoch_after_warmup" and epoch >= schedule.warmup_epochs:
        epoch = max(math.floor(epoch), schedule.warmup_epochs)  # a warmup may end within an epoch
    if epoch < schedule.warmup_epochs:
        return schedule.warmup_lr + epoch / schedule.warmup_epochs * (peak - schedule.warmup_lr)
    start = schedule.warmup_epochs if schedule.warmup_prefix else 0.0
    progress = min((epoch - start) / (schedule.epochs - start), 1.0)
    return schedule.min_lr + 0.5 * (peak - schedule.min_lr) * (1.0 + math.cos(math.pi * progress))


def total_steps(schedule: Schedule, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run; a fraction of an epoch is rounded up to whole steps."""
    return math.ceil(schedule.epochs * steps_per_epoch - 1e-9)
