"""Rotate, the shears and the translations: pixels of other places, bicubic as PIL's transform.

DALI warps nearest or linear only, so the bicubic (a = -1) is summed here from nearest-neighbour taps. It is bicubic
whatever augment.interpolation says, which is about the resize; the references train with bicubic throughout.
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
"""Colour of what a geometric operation uncovers: the ImageNet mean, rounded."""

# Cubic convolution with a = -1 for a point d past pixel 0: the weights of the pixels -1, 0, 1, 2 as polynomials in d,
# highest power first; and where a nearest-neighbour warp, which floors, finds these pixels.
_CUBIC = np.array([[-1, 2, -1, 0], [1, -2, 0, 1], [-1, 1, 1, 0], [1, -1, 0, 0]], np.float32).T
_TAPS = np.arange(4) - 1.5


def slide(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """Shears and translations of uint8 [S, S, 3], which move pixels along one axis: bicubic from four taps along it.

    arguments: float32, the map [2, 3], its row [3] of the coordinate that moves, then the maps of the taps [4, 2, 3].
    The other coordinate stays on the pixels.
    """
    source = _source_coordinates(images, fn.reshape(arguments[6:9], shape=[1, 3]), image_size)
    taps = _taps(images, fn.reshape(arguments[9:33], shape=[4, 2, 3]), 4)
    return _fill(fn.reductions.sum(taps * _cubic_weights(source), axes=[0]), source, image_size)


def rotate(images: DataNode, arguments: DataNode, image_size: int) -> DataNode:
    """An affine map, float32 arguments [2, 3], of uint8 [S, S, 3], which moves pixels along both axes.

    Bicubic from 4 x 4 taps, rows first.
    """
    matrix = fn.reshape(arguments[0:6], shape=[2, 3])
    shifts = np.zeros((4, 4, 2, 3), np.float32)
    shifts[..., 0, 2], shifts[..., 1, 2] = np.meshgrid(_TAPS, _TAPS)
    source = _source_coordinates(images, matrix, image_size)
    weights = _cubic_weights(source)
    taps = _taps(images, matrix + types.Constant(shifts.reshape(16, 2, 3)), 16)
    taps = fn.reshape(taps, shape=[4, 4, image_size, image_size, 3])
    rows = fn.reductions.sum(taps * weights[:, :, :, 0:1], axes=[1])
    return _fill(fn.reductions.sum(rows * weights[:, :, :, 1:2], axes=[0]), source, image_size)


def _rotation(level: NDArray[np.float64], sign: NDArray[np.float64], image_size: int) -> NDArray[np.float64]:
    """Up to 30 degrees about the centre: [m, 6], the map from output to input pixels."""
    angle = -np.deg2rad(30 * (level / 10 * sign))
    cos, sin, centre = np.cos(angle), np.sin(angle), image_size / 2
    return np.stack([cos, sin, centre * (1 - cos - sin), -sin, cos, centre * (1 + sin - cos)], axis=1)


def _sliding(axis: int, column: int, most: Callable[[int], float]) -> Arguments:
    """axis: the coordinate that moves, 0 for x. column: what the level sets in its row of the map, to `most` at 10."""

    def arguments(level: NDArray[np.float64], sign: NDArray[np.float64], image_size: int) -> NDArray[np.float64]:
        matrix = np.tile(np.eye(2, 3), (len(level), 1, 1))
        matrix[:, axis, column] = most(image_size) * (level / 10 * sign)
        taps = np.repeat(matrix[:, None], 4, axis=1)
        taps[:, :, axis, 2] += _TAPS
        return np.concatenate([matrix.reshape(-1, 6), matrix[:, axis], taps.reshape(-1, 24)], axis=1)

    return arguments


def _source_coordinates(images: DataNode, matrix: DataNode, image_size: int) -> DataNode:
    """Where the centre of every output pixel lies in the input: float [S, S, 1 or 2], pixels from the corner."""
    centres = np.arange(image_size, dtype=np.float32) + 0.5
    grid = np.stack(np.meshgrid(centres, centres), axis=-1)
    return fn.coord_transform(types.Constant(grid, device=images.device), MT=matrix)


def _taps(images: DataNode, matrices: DataNode, count: int) -> DataNode:
    """The image through `count` nearest-neighbour warps, edges repeated: [count, S, S, 3]."""
    frames = fn.stack(*[images] * count, axis_name="F")
    return fn.warp_affine(frames, matrix=fn.per_frame(matrices), interp_type=types.INTERP_NN)


def _cubic_weights(source: DataNode) -> DataNode:
    """Float [S, S, C] coordinates -> [4, S, S, C], the weights of the pixels around them."""
    position = source - 0.5
    past = position - dali_math.floor(position)
    coefficients = [types.Constant(each.reshape(4, 1, 1, 1), device=source.device) for each in _CUBIC]
    return ((coefficients[0] * past + coefficients[1]) * past + coefficients[2]) * past + coefficients[3]


def _fill(values: DataNode, source: DataNode, image_size: int) -> DataNode:
    """uint8 HWC of `values` [S, S, 3] where the source coordinates are inside the image, else FILL."""
    outside = fn.cast((source < 0.0) | (source >= float(image_size)), dtype=types.FLOAT)
    covered = 1.0 - fn.reductions.max(outside, axes=[2], keep_dims=True)
    fill = types.Constant(np.array(FILL, np.float32), device=values.device)
    return truncate(fn.reinterpret(values * covered + fill * (1.0 - covered), layout="HWC"))


OPERATIONS = (
    Operation("Rotate", rotate, _rotation, "warp"),
    Operation("ShearX", slide, _sliding(axis=0, column=1, most=lambda size: 0.3), "warp"),
    Operation("ShearY", slide, _sliding(axis=1, column=0, most=lambda size: 0.3), "warp"),
    Operation("TranslateXRel", slide, _sliding(axis=0, column=2, most=lambda size: 0.45 * size), "warp"),
    Operation("TranslateYRel", slide, _sliding(axis=1, column=2, most=lambda size: 0.45 * size), "warp"),
)
