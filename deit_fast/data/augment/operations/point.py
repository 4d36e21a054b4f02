"""Invert, Posterize, Solarize and SolarizeAdd: each maps a value to another one, whatever its neighbours are."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

from deit_fast.data.augment.operations import Arguments, Operation
from deit_fast.data.augment.view_graph import beside

_Steps = Callable[[NDArray[np.float64]], NDArray[np.int64] | int]
"""A fraction of the highest level, [m] in [0, 1] -> a whole number for each of m images, or one number for all."""


def change_values(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """All four operations at once on uint8 [S, S, 3]; the arguments make the unwanted ones do nothing.

    arguments: float32 [3 or more], whole numbers 0 to 256: the threshold from which values are inverted, a mask of the
    bits that are kept, and a number that is added to values below 128.
    """
    levels = fn.cast(arguments, dtype=types.UINT8)
    kept = images & beside(levels[1], images)
    bright = fn.cast(images >= beside(arguments[0], images), dtype=types.UINT8)
    dark = fn.cast(images < 128, dtype=types.UINT8)
    # The negative of 1 is 255, all bits. The sum is at most 127 + 110: no overflow.
    return (kept ^ -bright) + dark * beside(levels[2], images)


def _values(
    threshold: _Steps = lambda share: 256, bits: _Steps = lambda share: 8, addend: _Steps = lambda share: 0
) -> Arguments:
    """threshold: values from it on are inverted. bits: how many bits are kept. addend: is added to values below 128."""

    def arguments(level: NDArray[np.float64], sign: NDArray[np.float64], image_size: int) -> NDArray[np.float64]:
        share = level / 10
        mask = 256 - (1 << (8 - np.asarray(bits(share))))
        columns = [np.broadcast_to(each, level.shape) for each in (threshold(share), mask, addend(share))]
        return np.stack(columns, axis=1).astype(np.float64)

    return arguments


def _whole(share: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    return (share * most).astype(np.int64)


def _operation(name: str, **steps: _Steps) -> Operation:
    return Operation(name, change_values, _values(**steps), "change_values")


OPERATIONS = (
    _operation("Invert", threshold=lambda share: 0),  # inverting is solarising from threshold 0 on
    _operation("PosterizeIncreasing", bits=lambda share: 4 - _whole(share, 4)),
    _operation("PosterizeOriginal", bits=lambda share: 4 + _whole(share, 4)),
    _operation("SolarizeIncreasing", threshold=lambda share: 256 - _whole(share, 256)),
    _operation("Solarize", threshold=lambda share: _whole(share, 256)),
    _operation("SolarizeAdd", addend=lambda share: _whole(share, 110)),
)
