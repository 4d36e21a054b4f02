"""The learning rate as a pure function of the step; here and nowhere else it is decided.

The loop asks for it at every step and hands it to the step, which gives each group of weights its share of it
(optim/build.py: optim.layer_decay). optim.lr is the peak for run.global_batch and is not rescaled; the curve is the
recipe's `schedule`. `lr` in metrics.jsonl is that of the last step done: in the line of step N, learning_rate at N - 1.
`deit-fast show` prints rates of any recipe.
"""

import math

from deit_fast.recipe.sections import Schedule


def learning_rate(schedule: Schedule, peak: float, step: int, steps_per_epoch: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0; `peak` is optim.lr.

    With t in epochs (step / steps_per_epoch), w = warmup_epochs, T = epochs, and s = w with warmup_prefix, else 0:

        warmup_lr + (peak - warmup_lr) * t / w                               while t < w
        min_lr + (peak - min_lr) / 2 * (1 + cos(pi * (t - s) / (T - s)))     after that

    With warmup_prefix=false the cosine's phase starts at step 0 (timm CosineLR as facebookresearch/deit calls it). Then
    the peak of a run with a warmup is not quite reached: the rate rises to just below it and drops at t = w to the
    second line. With warmup_prefix=true (optax warmup_cosine_decay_schedule in deit3-jax, mmpretrain) the rate at t = w
    is the peak. Either way min_lr would be the rate of the step after the last.

    `update` says what the curve is sampled at: every step, the start of the epoch (PASSL), or every step of the warmup
    and then the start of the epoch (mmpretrain). With reference_epoch_steps epoch e gets the curve at e - 1, as the
    reference's loop has it: its first two epochs both train at warmup_lr.

    Every step is the default because the rate then neither jumps by a fifth of its peak at each epoch of the warmup,
    nor spends an epoch at warmup_lr, where nothing is learned, nor depends on how long an epoch is. The reference
    restarts its scheduler one epoch too far when it resumes; without a state there is nothing to restart.
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
    """Optimizer steps of the whole run; part of an epoch is rounded up."""
    return math.ceil(schedule.epochs * steps_per_epoch - 1e-9)
