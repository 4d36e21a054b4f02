"""Invert, Posterize, Solarize and SolarizeAdd: each maps a value to another one, whatever its neighbours are."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

from deit_fast.data.augment.operations import Arguments, Operation
from deit_fast.data.augment.view_graph import beside

_Steps = Callable[[NDArray[np.float64]], NDArray[np.int64] | int]
"""A fraction of the highest level, [m] in [0, 1] -> a whole number for each of m images, or one number for all."""

_HALF = 128  # the highest threshold with a table, and the value from which on SolarizeAdd adds nothing
_MOST_ADDED = 110


def change_values(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """uint8 [S, S, 3], each value changed as a table says.

    arguments: float32 [R, 6], of which this function needs the fourth, a number. Its exclusive or with a value is the
    value's place in `change_tables`. The first three are for the native path: the threshold from which values are
    inverted, a mask of the bits that are kept, and a number that is added to values below 128.
    """
    place = images ^ beside(fn.cast(arguments[0, 3], dtype=types.UINT16), images)
    tables = change_tables().ravel().tolist()
    return fn.lookup_table(place, keys=list(range(len(tables))), values=tables, dtype=types.UINT8)


def change_tables() -> NDArray[np.int64]:
    """The changed values by table and value, [247, 256]. DALI's operator takes 65,536 places, 256 such tables.

    First come the thresholds 0 to 128, then the 8 tables that keep 0 to 7 bits, then the 110 that add 1 to 110.
    Solarising from a threshold T above 128 is solarising the inverted image from 256 - T, and so it needs no table.
    """
    value = np.arange(256)
    solarised = [np.where(value < threshold, value, 255 - value) for threshold in range(_HALF + 1)]
    posterised = [value & _mask(bits) for bits in range(8)]
    added = [np.where(value < _HALF, value + addend, value) for addend in range(1, _MOST_ADDED + 1)]
    return np.stack([*solarised, *posterised, *added])


def _mask(bits: Any) -> Any:
    return 256 - (1 << (8 - bits))


def _values(
    threshold: _Steps = lambda share: 256, bits: _Steps = lambda share: 8, addend: _Steps = lambda share: 0
) -> Arguments:
    """threshold: values from it on are inverted. bits: how many bits are kept. addend: is added to values below 128.

    One of the three is given.
    """

    def arguments(level: NDArray[np.float64], sign: NDArray[np.float64], image_size: int) -> NDArray[np.float64]:
        above, kept, added = (np.broadcast_to(each(level / 10), level.shape) for each in (threshold, bits, addend))
        table = np.where(above > _HALF, 256 - above, above)
        table = np.where(kept < 8, _HALF + 1 + kept, np.where(added > 0, _HALF + 8 + added, table))
        inverted = (above > _HALF) & (kept == 8) & (added == 0)
        return np.stack([above, _mask(kept), added, 256 * table + 255 * inverted], axis=1).astype(np.float64)

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
    _operation("SolarizeAdd", addend=lambda share: _whole(share, _MOST_ADDED)),
)
