"""timm's cosine schedule (CosineLR), sampled at every step, or one epoch late as in the reference's loop."""

import math


def cosine(epoch: float, epochs: float, warmup: float, peak: float, start: float = 1e-6, end: float = 1e-5) -> float:
    """Linear from `start` to `peak` over the warmup; the phase of the cosine counts from the start of the run."""
    if epoch < warmup:
        return start + epoch * (peak - start) / warmup
    return end + (peak - end) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def rates_per_step(epochs: int, steps_per_epoch: int, warmup: float, peak: float) -> list[float]:
    return [cosine(step / steps_per_epoch, epochs, warmup, peak) for step in range(epochs * steps_per_epoch)]


def rates_of_the_reference(epochs: int, steps_per_epoch: int, warmup: float, peak: float) -> list[float]:
    """After every epoch the loop asks the scheduler for the rate of that epoch, which is one epoch late."""
    rates = []
    rate = cosine(0, epochs, warmup, peak)
    for epoch in range(epochs):
        rates += [rate] * steps_per_epoch
        rate = cosine(epoch, epochs, warmup, peak)
    return rates
