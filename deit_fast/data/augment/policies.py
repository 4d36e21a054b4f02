"""Draws of RandAugment and AutoAugment: which operations, at which level, in which direction. No pixel is touched.

Source of the facts: timm 1.0.31's `data/auto_augment.py`, policies `rand-mM-mstdS-inc1` and `original`. The latter is
the ImageNet policy of AutoAugment (arXiv:1805.09501, table 9). The operations themselves are in `operations/`.
"""

import numpy as np
from numpy.typing import NDArray

from deit_fast.recipe.sections import Augment
from deit_fast.runtime.philox import Stream, normal, uniform

RAND_OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ColorIncreasing",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
"""RandAugment's operations, in timm's order."""

OPERATIONS = (*RAND_OPERATIONS, "PosterizeOriginal", "Solarize", "Color", "Contrast", "Sharpness")
"""All operations: RandAugment's, and five that AutoAugment adds, whose levels have another meaning."""

AUTO_POLICY = (
    (("PosterizeOriginal", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("PosterizeOriginal", 0.6, 7), ("PosterizeOriginal", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("PosterizeOriginal", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("PosterizeOriginal", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)
"""AutoAugment's sub-policies: two operations each, with their probability and level."""

_AUTO_OPS = np.array([[OPERATIONS.index(name) for name, _, _ in pair] for pair in AUTO_POLICY], np.int32)
_AUTO_PROBABILITIES = np.array([[probability for _, probability, _ in pair] for pair in AUTO_POLICY])
_AUTO_LEVELS = np.array([[level for _, _, level in pair] for pair in AUTO_POLICY], np.float32)

Draws = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]


POLICIES = ("rand_augment", "auto_augment")
"""The values of augment.policy whose operations are drawn in this module."""


def count_operations(augment: Augment) -> int:
    """The largest number of operations in a row that the recipe's policy, one of POLICIES, applies to a view."""
    return augment.rand_ops if augment.policy == "rand_augment" else _AUTO_OPS.shape[1]


def operation_names(augment: Augment) -> tuple[str, ...]:
    """Names of the operations that the recipe's policy, one of POLICIES, may draw. An operation's id is its index."""
    return (*OPERATIONS, *augment.rand_extra) if augment.policy == "rand_augment" else OPERATIONS


def draw_operations(
    augment: Augment, seed: int, epoch: int, indices: NDArray[np.int64], views: NDArray[np.int64]
) -> Draws:
    """Operation (its id; -1 means none), level (0 to 10) and sign (-1 or 1) of B views, [B, n] each.

    indices, views: int64 [B]. View b is augmented view number views[b] of image indices[b].
    """
    if augment.policy == "auto_augment":
        return _draw_auto(uniform(seed, Stream.POLICY, epoch, indices, views, 5))
    count, names = count_operations(augment), operation_names(augment)
    choices = np.array([*range(len(RAND_OPERATIONS)), *range(len(OPERATIONS), len(names))], np.int32)
    draws = uniform(seed, Stream.POLICY, epoch, indices, views, 3 * count).reshape(len(indices), 3, count)
    level = augment.rand_magnitude + augment.rand_std * normal(seed, Stream.MAGNITUDE, epoch, indices, views, count)
    return (
        np.where(draws[:, 1] < 0.5, choices[(draws[:, 0] * len(choices)).astype(np.int32)], np.int32(-1)),
        np.clip(level, 0, 10).astype(np.float32),
        _sign(draws[:, 2]),
    )


def _draw_auto(draws: NDArray[np.float64]) -> Draws:
    """AutoAugment's draws.

    draws: uniform [B, 5]: the sub-policy, whether each of its two operations is applied, and their two signs.
    """
    chosen = (draws[:, 0] * len(AUTO_POLICY)).astype(np.int32)
    applied = draws[:, 1:3] < _AUTO_PROBABILITIES[chosen]
    return np.where(applied, _AUTO_OPS[chosen], np.int32(-1)), _AUTO_LEVELS[chosen], _sign(draws[:, 3:5])


def _sign(draws: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.where(draws < 0.5, np.float32(-1), np.float32(1))
