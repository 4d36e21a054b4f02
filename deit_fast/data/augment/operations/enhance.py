"""Color, Contrast, Brightness and Sharpness: PIL's ImageEnhance, by a factor."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.data_node import DataNode

from deit_fast.data.augment.operations import Arguments, Operation
from deit_fast.data.augment.view_graph import BRIGHTNESS, CONTRAST, SATURATION, TRUNCATE, luma

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # PIL's ImageFilter.SMOOTH

_Factor = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""Levels and signs [m] -> factors [m]."""


def enhance_colours(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """uint8 [S, S, 3] enhanced by arguments, float32 [R, 6].

    arguments: a row with the factor and the kind, as `view_graph.enhance` takes them, then a matrix [3, 6]: how much of
    red, green, blue, the greyscale image, the rounded mean luma and this mean again is in each channel of the result.
    """
    grey = luma(images)
    mean = fn.cast(fn.reductions.mean(grey, keep_dims=True), dtype=types.UINT8)  # rounds
    mean = dali_math.clamp(grey, mean, mean)  # repeats it, [S, S, 1]
    return _combine(fn.cat(images, grey, mean, mean, axis=2), arguments)


def sharpen(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """uint8 [S, S, 3] blended with PIL's SMOOTH by arguments, float32 [R, 6]. PIL copies the outermost pixels.

    arguments: a row with the factor, where 1 changes nothing, then a matrix [3, 6]: how much of the image and of the
    smoothed image there is in each channel of the result.
    """
    edge = image_size - 1
    smooth = fn.filter(images, types.Constant(_SMOOTH, device=images.device))
    changed = images ^ _combine(fn.cat(images, smooth, axis=2), arguments)
    return images ^ fn.erase(
        changed,
        anchor=[0, 0, edge, 0, 0, 0, 0, edge],
        shape=[1, image_size, 1, image_size, image_size, 1, image_size, 1],
        axis_names="HW",
    )


def _combine(images: DataNode, arguments: DataNode) -> DataNode:
    """uint8 [S, S, 6] -> uint8 [S, S, 3] by the matrix in `arguments`, clamped to 0..255 and truncated as PIL does."""
    return fn.coord_transform(images, M=arguments[1:4], T=TRUNCATE, dtype=types.UINT8)


def _increasing(level: NDArray[np.float64], sign: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors that move away from 1 as the level grows, down to 0.1 or up to 1.9 by the sign."""
    return np.maximum(0.1, 1 + 0.9 * (level / 10 * sign))


def _rising(level: NDArray[np.float64], sign: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors from 0.1 at level 0 to 1.9 at level 10."""
    return 0.1 + 1.8 * (level / 10)


def _by(factor: _Factor, kind: int, degenerate: tuple[int, ...] = ()) -> Arguments:
    """degenerate: for each channel, the column of the image that a factor of 0 gives, or () for a black image."""

    def arguments(level: NDArray[np.float64], sign: NDArray[np.float64], image_size: int) -> NDArray[np.float64]:
        by = factor(level, sign)
        rows = np.zeros((len(by), 4, 6))
        rows[:, 0, :2] = np.stack([by, np.full_like(by, kind)], axis=1)
        rows[:, range(1, 4), range(3)] = by[:, None]
        rows[:, range(1, 1 + len(degenerate)), degenerate] = 1 - by[:, None]
        return rows.reshape(-1, 24)

    return arguments


OPERATIONS = (
    Operation("Color", enhance_colours, _by(_rising, SATURATION, (3, 3, 3)), "enhance"),
    Operation("ColorIncreasing", enhance_colours, _by(_increasing, SATURATION, (3, 3, 3)), "enhance"),
    Operation("Contrast", enhance_colours, _by(_rising, CONTRAST, (4, 4, 4)), "enhance"),
    Operation("ContrastIncreasing", enhance_colours, _by(_increasing, CONTRAST, (4, 4, 4)), "enhance"),
    Operation("BrightnessIncreasing", enhance_colours, _by(_increasing, BRIGHTNESS), "enhance"),
    Operation("Sharpness", sharpen, _by(_rising, 0, (3, 4, 5)), "sharpen"),
    Operation("SharpnessIncreasing", sharpen, _by(_increasing, 0, (3, 4, 5)), "sharpen"),
)
