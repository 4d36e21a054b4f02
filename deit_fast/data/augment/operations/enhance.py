"""Color, Contrast, Brightness and Sharpness: PIL's ImageEnhance, by a factor."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.data_node import DataNode

from deit_fast.data.augment.operations import Arguments, Operation
from deit_fast.data.augment.view_graph import BRIGHTNESS, CONTRAST, SATURATION, beside, luma, truncate

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # PIL's ImageFilter.SMOOTH

_Factor = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""Levels and signs [m] -> factors [m]."""


def enhance_colours(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """uint8 [S, S, 3] enhanced by arguments, float32 [4 or more].

    arguments: the factor and the kind, as `view_graph.enhance` takes them, then the weights of the greyscale image and
    of the rounded mean luma, one or both of which are 0. Weights replace a condition, because the operators of a
    condition would cost more than the arithmetic that it skips.
    """
    grey = luma(images)
    centre = dali_math.floor(fn.reductions.mean(grey) + 0.5)
    added = grey * beside(arguments[2], images) + centre * beside(arguments[3], images)
    return truncate(images * beside(arguments[0], images) + added)


def sharpen(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """uint8 [S, S, 3] blended with PIL's SMOOTH by arguments, float32 [2 or more].

    arguments: the factor, where 1 changes nothing, and the weight of the smoothed image, which is 1 - factor. PIL
    copies the outermost pixels, so these keep the factor 1.
    """
    inside = np.zeros((image_size, image_size, 1), np.float32)
    inside[1:-1, 1:-1] = 1
    smooth = fn.filter(images, types.Constant(_SMOOTH, device=images.device))
    share = types.Constant(inside, device=images.device) * beside(arguments[1], images)
    return truncate(images * (1.0 - share) + smooth * share)


def _increasing(level: NDArray[np.float64], sign: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors that move away from 1 as the level grows, down to 0.1 or up to 1.9 by the sign."""
    return np.maximum(0.1, 1 + 0.9 * (level / 10 * sign))


def _rising(level: NDArray[np.float64], sign: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors from 0.1 at level 0 to 1.9 at level 10."""
    return 0.1 + 1.8 * (level / 10)


def _by(factor: _Factor, kind: int) -> Arguments:
    def arguments(level: NDArray[np.float64], sign: NDArray[np.float64], image_size: int) -> NDArray[np.float64]:
        by = factor(level, sign)
        rest, nothing = 1 - by, np.zeros_like(by)
        shares = rest if kind == SATURATION else nothing, rest if kind == CONTRAST else nothing
        return np.stack([by, np.full_like(by, kind), *shares], axis=1)

    return arguments


def _sharpness(factor: _Factor) -> Arguments:
    def arguments(level: NDArray[np.float64], sign: NDArray[np.float64], image_size: int) -> NDArray[np.float64]:
        by = factor(level, sign)
        return np.stack([by, 1 - by], axis=1)

    return arguments


OPERATIONS = (
    Operation("Color", enhance_colours, _by(_rising, SATURATION), "enhance"),
    Operation("ColorIncreasing", enhance_colours, _by(_increasing, SATURATION), "enhance"),
    Operation("Contrast", enhance_colours, _by(_rising, CONTRAST), "enhance"),
    Operation("ContrastIncreasing", enhance_colours, _by(_increasing, CONTRAST), "enhance"),
    Operation("BrightnessIncreasing", enhance_colours, _by(_increasing, BRIGHTNESS), "enhance"),
    Operation("Sharpness", sharpen, _sharpness(_rising), "sharpen"),
    Operation("SharpnessIncreasing", sharpen, _sharpness(_increasing), "sharpen"),
)
