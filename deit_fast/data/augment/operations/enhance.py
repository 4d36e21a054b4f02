"""Color, Contrast, Brightness and Sharpness: PIL's ImageEnhance, by a factor."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

from deit_fast.data.augment.operations import Arguments, Operation
from deit_fast.data.augment.view_graph import BRIGHTNESS, CONTRAST, SATURATION, beside, enhance, truncate

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # PIL's ImageFilter.SMOOTH

_Factor = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""Levels and signs [m] -> factors [m]."""


def enhance_colours(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """uint8 [S, S, 3] enhanced by arguments, float32 [2 or more]: the factor, and the kind that `enhance` numbers."""
    return enhance(images, arguments[1], arguments[0])


def sharpen(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """uint8 [S, S, 3] blended with PIL's SMOOTH by arguments, float32 [1 or more]: the factor, 1 changes nothing.

    PIL copies the outermost pixels, so they keep the factor 1.
    """
    inside = np.zeros((image_size, image_size, 1), np.float32)
    inside[1:-1, 1:-1] = 1
    smooth = fn.filter(images, types.Constant(_SMOOTH, device=images.device))
    weight = 1.0 + types.Constant(inside, device=images.device) * (beside(arguments[0], images) - 1.0)
    return truncate(images * weight + smooth * (1.0 - weight))


def _increasing(level: NDArray[np.float64], sign: NDArray[np.float64]) -> NDArray[np.float64]:
    """Away from 1 with the level, to 0.1 or to 1.9 by the sign."""
    return np.maximum(0.1, 1 + 0.9 * (level / 10 * sign))


def _rising(level: NDArray[np.float64], sign: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 0.1 at level 0 to 1.9 at level 10."""
    return 0.1 + 1.8 * (level / 10)


def _by(factor: _Factor, *kind: int) -> Arguments:
    def arguments(level: NDArray[np.float64], sign: NDArray[np.float64], image_size: int) -> NDArray[np.float64]:
        return np.stack([factor(level, sign), *(np.full(level.shape, float(each)) for each in kind)], axis=1)

    return arguments


OPERATIONS = (
    Operation("Color", enhance_colours, _by(_rising, SATURATION), "enhance"),
    Operation("ColorIncreasing", enhance_colours, _by(_increasing, SATURATION), "enhance"),
    Operation("Contrast", enhance_colours, _by(_rising, CONTRAST), "enhance"),
    Operation("ContrastIncreasing", enhance_colours, _by(_increasing, CONTRAST), "enhance"),
    Operation("BrightnessIncreasing", enhance_colours, _by(_increasing, BRIGHTNESS), "enhance"),
    Operation("Sharpness", sharpen, _by(_rising), "sharpen"),
    Operation("SharpnessIncreasing", sharpen, _by(_increasing), "sharpen"),
)
