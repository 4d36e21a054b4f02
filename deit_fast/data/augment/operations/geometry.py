"""Rotate, the shears and the translations: affine warps, bicubic as PIL's Image.transform.

DALI's warp interpolates nearest or linear only, so the bicubic filter (a = -1) is summed here from nearest-neighbour
taps. The warp is always bicubic, as in the references' trainings: augment.interpolation is about the resize alone.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.data_node import DataNode

from deit_fast.data.augment.operations import Arguments, Operation
from deit_fast.data.augment.view_graph import truncate

FILL = (124, 116, 104)
"""Colour of the pixels that a geometric operation uncovers: the ImageNet mean, rounded."""

_UNCOVERED = np.divide(-255, FILL).tolist()  # (v - 255) / these is FILL for 0 and black for 255

_TAPS = np.array([-0.5, -1.5, 0.5, 1.5])
"""Offsets from a point past pixel 0 at which a nearest-neighbour warp, which rounds down, finds pixels 0, -1, 1, 2."""


def warp(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """An affine map of uint8 [S, S, 3], bicubic: 4 taps where one coordinate moves, 4 x 4 taps where both move.

    arguments, float32 [R, 6], row by row: the map [2, 3] from output to input pixels; the same map with the
    coordinate first that moves more; 1 or 2, and 4 or 16, the number of taps; the maps of the taps.
    """
    maps = fn.reshape(arguments, shape=[-1, 2, 3], layout="FHW")
    ordered, whole = maps[1], fn.cast(arguments[2], dtype=types.INT32)
    half, count = whole[0], whole[1:2]
    weights = _cubic_weights(images, ordered, image_size)
    both = weights[:half, :half, :, :, :, 1] * weights[:, :, 0, 0, :, 0]
    frames = fn.stack(images, images, images, images, axis_name="F")  # most warps have 4 taps: a copy is fastest
    frames = fn.slice(frames, start=[0], shape=count, axes=[0], out_of_bounds_policy="edge")
    maps = fn.slice(maps, start=[3], shape=count, axes=[0])
    taps = fn.warp_affine(frames, matrix=maps, interp_type=types.INTERP_NN)  # repeats edge pixels
    values = taps * fn.reshape(both, shape=[-1, image_size, image_size, 1])
    values = truncate(fn.reductions.sum(values, axes=[0]))
    # The order of the coordinates does not matter here: the image is square, and a pixel is inside where both are.
    white = images | types.Constant(255).uint8()
    inside = fn.warp_affine(white, matrix=ordered, fill_value=0.0, interp_type=types.INTERP_NN)
    return (values & inside) + fn.crop_mirror_normalize(
        inside, mean=255.0, std=_UNCOVERED, dtype=types.UINT8, output_layout="HWC"
    )


def _cubic_weights(images: DataNode, matrix: DataNode, image_size: int) -> DataNode:
    """Weights of the pixels 0, -1, 1, 2 around the source of each output pixel: float [2, 2, 1, 1, S * S, 2].

    The first two axes number the pixels, and the last one the coordinates.

    Cubic convolution with a = -1, at a distance d past pixel 0. The outer two weights are -d (1 - d)^2 and -d^2 (1 -
    d). Each inner weight is the linear weight minus the outer weight beside it.
    """
    centres = np.arange(image_size, dtype=np.float32) + 0.5
    grid = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(1, 1, -1, 2)
    position = fn.coord_transform(types.Constant(grid, device=images.device), MT=matrix) - 0.5
    past = position - dali_math.floor(position)
    linear = fn.stack(1.0 - past, past)
    outer = linear * (past * past - past)
    return fn.stack(linear - outer, outer, axis=1)


def _arguments(matrix: NDArray[np.float64], first: int, taps: int) -> NDArray[np.float64]:
    """[m, 114], the arguments of `warp` for maps [m, 2, 3].

    first: the coordinate that moves more. taps: the number of taps of the other coordinate.
    """
    rows = np.zeros((len(matrix), 19, 2, 3))
    rows[:, 0], rows[:, 1] = matrix, matrix[:, [first, 1 - first]]
    rows[:, 2, 0, :2] = taps // 2 or 1, 4 * taps
    maps = rows[:, 3 : 3 + 4 * taps]
    maps[:] = matrix[:, None]
    maps[:, :, first, 2] += np.tile(_TAPS, taps)
    if taps > 1:
        maps[:, :, 1 - first, 2] += np.repeat(_TAPS, 4)
    return rows.reshape(-1, 114)


def _rotation(level: NDArray[np.float64], sign: NDArray[np.float64], image_size: int) -> NDArray[np.float64]:
    """Rotation about the centre by up to 30 degrees."""
    angle = -np.deg2rad(30 * (level / 10 * sign))
    cos, sin, centre = np.cos(angle), np.sin(angle), image_size / 2
    matrix = np.stack([cos, sin, centre * (1 - cos - sin), -sin, cos, centre * (1 + sin - cos)], axis=1)
    return _arguments(matrix.reshape(-1, 2, 3), first=0, taps=4)


def _sliding(axis: int, column: int, most: Callable[[int], float]) -> Arguments:
    """Shears and translations. axis: the coordinate that moves, 0 for x.

    column: the element that the level sets in this axis's row of the map. most: its value at level 10.
    """

    def arguments(level: NDArray[np.float64], sign: NDArray[np.float64], image_size: int) -> NDArray[np.float64]:
        matrix = np.tile(np.eye(2, 3), (len(level), 1, 1))
        matrix[:, axis, column] = most(image_size) * (level / 10 * sign)
        return _arguments(matrix, first=axis, taps=1)

    return arguments


OPERATIONS = (
    Operation("Rotate", warp, _rotation, "warp"),
    Operation("ShearX", warp, _sliding(axis=0, column=1, most=lambda size: 0.3), "warp"),
    Operation("ShearY", warp, _sliding(axis=1, column=0, most=lambda size: 0.3), "warp"),
    Operation("TranslateXRel", warp, _sliding(axis=0, column=2, most=lambda size: 0.45 * size), "warp"),
    Operation("TranslateYRel", warp, _sliding(axis=1, column=2, most=lambda size: 0.45 * size), "warp"),
)
