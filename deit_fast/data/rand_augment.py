"""DALI graph functions of RandAugment: the 15 operations of timm's `rand-mM-mstdS-inc1`.

The facts (operations, level to argument, fill, resampling) are timm 1.0.31's `data/auto_augment.py`; the arithmetic is
PIL's. What remains different from PIL on uint8 images, in units of 0 to 255 (the tests hold these):

* Rotate, ShearX, ShearY, TranslateXRel, TranslateYRel: DALI warps nearest or linear only, so the bicubic (a = -1, as
  PIL's transform) is summed here from nearest-neighbour taps. Equal to PIL but where float32 and PIL's double disagree
  about which side of a pixel a coordinate falls: below 0.1 % of the pixels.
* Equalize: DALI rounds to the nearest level where PIL divides integers: at most 3, 0.4 in the mean.
* AutoContrast, Color, Contrast, Brightness: 1 in below 0.5 % of the values, from float32.
* Invert, Posterize, Solarize, SolarizeAdd, Sharpness: none, but for 1 in below 0.5 % of Sharpness's values.
"""

import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.data_node import DataNode

from deit_fast.data.augment import BRIGHTNESS, beside, enhance, truncate

RAND_OPS = (
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
"""The operations in timm's order; an operation's id is its index."""

(
    AUTO_CONTRAST,
    EQUALIZE,
    INVERT,
    ROTATE,
    POSTERIZE,
    SOLARIZE,
    SOLARIZE_ADD,
    COLOR,
    _CONTRAST,
    _BRIGHTNESS,
    SHARPNESS,
    SHEAR_X,
    SHEAR_Y,
    TRANSLATE_X,
    TRANSLATE_Y,
) = range(len(RAND_OPS))

FILL = (124, 116, 104)
"""Colour of what a geometric operation uncovers: the ImageNet mean, rounded."""

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # PIL's ImageFilter.SMOOTH


def rand_arguments(
    op: npt.NDArray[np.int32], magnitude: npt.NDArray[np.float32], sign: npt.NDArray[np.float32], image_size: int
) -> dict[str, npt.NDArray[np.generic]]:
    """Levels to arguments, as timm computes them. op, magnitude (0 to 10), sign: [B, n].

    Returns what `rand_augment` takes: rand_op int32 [B, n], rand_value float32 [B, n] (enhancement factor or solarise
    threshold), rand_byte uint8 [B, n] (posterise mask or solarise addend), rand_matrix float32 [B, n, 2, 3] (output to
    input coordinates, pixels).
    """
    level = magnitude.astype(np.float64) / 10
    signed = level * sign
    threshold = np.where(op == SOLARIZE, 256 - np.minimum((level * 256).astype(int), 256), 0)  # 0 inverts everything
    factor = np.maximum(0.1, 1 + 0.9 * signed)
    enhances = (op >= COLOR) & (op <= SHARPNESS)
    kept_bits = 4 - (level * 4).astype(int)
    byte = np.where(op == POSTERIZE, 256 - (1 << (8 - kept_bits)), np.minimum((level * 110).astype(int), 128))
    return {
        "rand_op": op.astype(np.int32),
        "rand_value": np.where(enhances, factor, threshold).astype(np.float32),
        "rand_byte": byte.astype(np.uint8),
        "rand_matrix": _matrices(op, signed, image_size),
    }


def _matrices(
    op: npt.NDArray[np.int32], signed: npt.NDArray[np.float64], image_size: int
) -> npt.NDArray[np.float32]:
    matrix = np.zeros((*op.shape, 2, 3))
    matrix[..., 0, 0] = matrix[..., 1, 1] = 1
    matrix[..., 0, 1] = np.where(op == SHEAR_X, 0.3 * signed, 0)
    matrix[..., 1, 0] = np.where(op == SHEAR_Y, 0.3 * signed, 0)
    matrix[..., 0, 2] = np.where(op == TRANSLATE_X, 0.45 * image_size * signed, 0)
    matrix[..., 1, 2] = np.where(op == TRANSLATE_Y, 0.45 * image_size * signed, 0)
    angle = -np.deg2rad(30 * signed)
    cos, sin, centre = np.cos(angle), np.sin(angle), image_size / 2
    rotation = np.stack(
        [cos, sin, centre * (1 - cos - sin), -sin, cos, centre * (1 + sin - cos)], axis=-1
    ).reshape(matrix.shape)
    return np.where((op == ROTATE)[..., None, None], rotation, matrix).astype(np.float32)


def rand_augment(images: DataNode, count: int, parameters: dict[str, DataNode], image_size: int) -> DataNode:
    """`count` operations in a row on uint8 [S, S, 3]; -1 skips. Parameters as `rand_arguments` returns them."""
    for step in range(count):
        images = _apply(
            images,
            parameters["rand_op"][step],
            parameters["rand_value"][step],
            parameters["rand_byte"][step],
            parameters["rand_matrix"][step],
            image_size,
        )
    return images


def _apply(
    images: DataNode, op: DataNode, value: DataNode, byte: DataNode, matrix: DataNode, image_size: int
) -> DataNode:
    if op == ROTATE:
        images = _rotate(images, matrix, image_size)
    elif op >= SHEAR_X:
        if (op == SHEAR_X) | (op == TRANSLATE_X):
            images = _warp_along(images, matrix, image_size, axis=0)
        else:
            images = _warp_along(images, matrix, image_size, axis=1)
    elif op == SHARPNESS:
        images = _sharpen(images, value, image_size)
    elif op >= COLOR:
        images = enhance(images, _BRIGHTNESS - op + BRIGHTNESS, value)  # the kinds run the other way
    elif op == SOLARIZE_ADD:
        dark = fn.cast(images < 128, dtype=types.UINT8)
        images = images + dark * beside(byte, images)  # at most 127 + 110: no overflow
    elif op == POSTERIZE:
        images = images & beside(byte, images)
    elif op == AUTO_CONTRAST:
        images = _auto_contrast(images)
    elif op == EQUALIZE:
        # DALI's (OpenCV's) formula counts the pixels up to a level, PIL's those below it: the same thing upside down.
        images = ~fn.equalize(~images)
    elif op >= 0:  # Invert and Solarize: negated from the threshold on
        bright = fn.cast(images >= beside(value, images), dtype=types.UINT8)
        images = images ^ -bright  # -1 is 255, all bits
    return images


def _auto_contrast(images: DataNode) -> DataNode:
    """Stretch every channel to 0..255; a constant channel stays."""
    low = fn.reductions.min(images, axes=[0, 1], keep_dims=True)
    span = fn.cast(fn.reductions.max(images, axes=[0, 1], keep_dims=True) - low, dtype=types.FLOAT)
    varies = fn.cast(span > 0, dtype=types.FLOAT)
    scale = varies * 255.0 / dali_math.max(span, 1.0) + (1.0 - varies)
    return truncate((images - low * varies) * scale)


def _sharpen(images: DataNode, factor: DataNode, image_size: int) -> DataNode:
    """Blend with PIL's SMOOTH; PIL copies the outermost pixels, so they keep the factor 1."""
    inside = np.zeros((image_size, image_size, 1), np.float32)
    inside[1:-1, 1:-1] = 1
    smooth = fn.filter(images, types.Constant(_SMOOTH))
    weight = 1.0 + types.Constant(inside, device=images.device) * (beside(factor, images) - 1.0)
    return truncate(images * weight + smooth * (1.0 - weight))


def _source_coordinates(images: DataNode, matrix: DataNode, image_size: int) -> tuple[DataNode, DataNode]:
    """Where each output pixel lies in the input, as the fraction past a pixel centre and whether it is inside at all.

    Returns float [S, S, 2] (x, y) and float [S, S, 1] of 0 or 1.
    """
    centres = np.arange(image_size, dtype=np.float32) + 0.5
    grid = np.stack(np.meshgrid(centres, centres), axis=-1)
    source = fn.coord_transform(types.Constant(grid, device=images.device), MT=matrix)
    inside = (source >= 0.0) & (source < float(image_size))
    position = source - 0.5
    return position - dali_math.floor(position), fn.cast(inside[:, :, 0:1] & inside[:, :, 1:2], dtype=types.FLOAT)


def _cubic_taps(
    images: DataNode, matrix: DataNode, fraction: DataNode, offsets: npt.NDArray[np.float32]
) -> DataNode:
    """Cubic convolution (a = -1) of four nearest-neighbour taps at `offsets` [4, 2] (x, y; pixels)."""
    weights = (
        ((2.0 - fraction) * fraction - 1.0) * fraction,
        (fraction - 2.0) * fraction * fraction + 1.0,
        ((1.0 - fraction) * fraction + 1.0) * fraction,
        (fraction - 1.0) * fraction * fraction,
    )
    total = None
    for offset, weight in zip(offsets, weights, strict=True):
        shift = np.zeros((2, 3), np.float32)
        shift[:, 2] = offset
        tap = fn.warp_affine(images, matrix=matrix + types.Constant(shift), interp_type=types.INTERP_NN) * weight
        total = tap if total is None else total + tap
    return total


_TAPS = np.arange(4, dtype=np.float32) - 1.5  # the nearest neighbour floors, so these are the pixels -1, 0, 1, 2


def _warp_along(images: DataNode, matrix: DataNode, image_size: int, axis: int) -> DataNode:
    """Affine map that moves pixels along x (axis 0) or y (axis 1) only: four taps are enough."""
    fraction, inside = _source_coordinates(images, matrix, image_size)
    offsets = np.zeros((4, 2), np.float32)
    offsets[:, axis] = _TAPS
    return _fill(_cubic_taps(images, matrix, fraction[:, :, axis : axis + 1], offsets), inside)


def _rotate(images: DataNode, matrix: DataNode, image_size: int) -> DataNode:
    fraction, inside = _source_coordinates(images, matrix, image_size)
    horizontal, vertical = fraction[:, :, 0:1], fraction[:, :, 1:2]
    rows = [
        _cubic_taps(images, matrix, horizontal, np.stack([_TAPS, np.full(4, offset, np.float32)], axis=1))
        for offset in _TAPS
    ]
    weights = (
        ((2.0 - vertical) * vertical - 1.0) * vertical,
        (vertical - 2.0) * vertical * vertical + 1.0,
        ((1.0 - vertical) * vertical + 1.0) * vertical,
        (vertical - 1.0) * vertical * vertical,
    )
    total = rows[0] * weights[0]
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total = total + row * weight
    return _fill(total, inside)


def _fill(values: DataNode, inside: DataNode) -> DataNode:
    fill = types.Constant(np.array(FILL, np.float32), device=values.device)
    return truncate(values * inside + fill * (1.0 - inside))
