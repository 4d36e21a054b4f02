"""Mixup and CutMix of one GPU's batch with its reversal, with one draw for the whole batch."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Draw(NamedTuple):
    cutmix: bool
    lam: float
    """The image's own share as drawn; CutMix computes it from the box instead."""
    box: tuple[int, int, int, int]
    """top, left, bottom, right."""


def draw_mixing(random: np.random.RandomState, mixup: float, cutmix: float, size: int) -> Draw:
    cuts = random.rand() < 0.5
    alpha = cutmix if cuts else mixup
    lam = random.beta(alpha, alpha)
    side = int(size * np.sqrt(1 - lam))
    row, column = random.randint(size), random.randint(size)
    top, left = row - side // 2, column - side // 2
    top, bottom = np.clip([top, top + side], 0, size)
    left, right = np.clip([left, left + side], 0, size)
    return Draw(bool(cuts), float(lam), (int(top), int(left), int(bottom), int(right)))


def partners(batch: Tensor) -> Tensor:
    """The images that are mixed into each image of the batch."""
    return batch.flip(0)


def smoothed_one_hot(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    targets = torch.full((len(labels), classes), smoothing / classes)
    for row, label in enumerate(labels.tolist()):
        targets[row, label] = 1 - smoothing + smoothing / classes
    return targets


def mix(images: Tensor, targets: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """images [B, 3, S, S], targets [B, K] -> both mixed."""
    lam = draw.lam
    if draw.cutmix:
        top, left, bottom, right = draw.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = partners(images)[:, :, top:bottom, left:right]
        lam = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    else:
        mixed = lam * images + (1 - lam) * partners(images)
    return mixed, mix_targets(targets, lam)


def mix_targets(targets: Tensor, lam: float) -> Tensor:
    return lam * targets + (1 - lam) * partners(targets)
