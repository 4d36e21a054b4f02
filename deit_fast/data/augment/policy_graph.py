"""DALI graph functions of the operations that RandAugment and AutoAugment are made of.

The facts (operations, level to argument, fill, resampling) are timm 1.0.31's `data/auto_augment.py`; the arithmetic is
PIL's. What remains different from them on uint8 images, 0 to 255 (measured at 224 px; the tests hold it):

* Invert, Posterize, Solarize, SolarizeAdd: nothing. (PosterizeIncreasing at a level of exactly 10 keeps no bit: black,
  as in PIL until it refused to.)
* AutoContrast, Color, Contrast, Brightness, Sharpness: 1 in below 0.5 % of the values, from float32.
* Equalize: 1 in a quarter of the values; DALI rounds the cumulated histogram before it can be rescaled as PIL's.
* Rotate, ShearX, ShearY, TranslateXRel, TranslateYRel: 1 in below 0.5 % of the values, and more in about one pixel of
  ten thousand, whose coordinate falls on the edge between pixels up to float32. DALI warps nearest or linear only, so
  the bicubic (a = -1, as PIL's transform) is summed here from nearest-neighbour taps. It is bicubic whatever
  augment.interpolation says, which is about the resize; the references train with bicubic throughout.

Why not DALI's own nvidia.dali.auto_aug (2.4), where it departs from timm and PIL:

* Randomness comes from operators inside the graph: no view is a function of (seed, epoch, index, view).
* Its RandAugment has other operations (Identity; no Invert, no SolarizeAdd), applies each always instead of half of the
  time, at one bin instead of a level drawn around it; Posterize keeps 8 to 4 bits where timm keeps 4 to 0.
* Its AutoAugment "image_net" is the policy of TPU EfficientNet (timm's "v0"); the paper's is "reduced_image_net", but
  there Posterize keeps the level's 0 to 4 bits, at least 1 (timm: 4 to 8), and thresholds are fractions (timm: whole).
* Rotate, shears, translations: nearest or linear (bicubic), one fill value for all channels (the mean colour);
  relative translations reach 100/224 in RandAugment and the whole image in AutoAugment (0.45).
* Brightness, Color, AutoContrast and Contrast round (PIL truncates); the centre of Contrast is the mean luma (PIL
  rounds the luma and its mean); Sharpness filters the border (PIL copies it); Equalize is OpenCV's.

Everything above that can be told from PIL is corrected here by arithmetic in the graph instead.
"""

import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.data_node import DataNode

from deit_fast.data.augment.policies import OPERATIONS
from deit_fast.data.augment.view_graph import BRIGHTNESS, CONTRAST, SATURATION, beside, enhance, truncate

# What runs: operations that one piece of the graph computes share a group.
_SKIP, _POINT, _ENHANCE, _SHARPEN, _AUTO_CONTRAST, _EQUALIZE, _SLIDE, _ROTATE = range(8)
_GROUPS = {
    "AutoContrast": _AUTO_CONTRAST,
    "Equalize": _EQUALIZE,
    "Rotate": _ROTATE,
    "Color": _ENHANCE,
    "ColorIncreasing": _ENHANCE,
    "Contrast": _ENHANCE,
    "ContrastIncreasing": _ENHANCE,
    "BrightnessIncreasing": _ENHANCE,
    "Sharpness": _SHARPEN,
    "SharpnessIncreasing": _SHARPEN,
    "ShearX": _SLIDE,
    "ShearY": _SLIDE,
    "TranslateXRel": _SLIDE,
    "TranslateYRel": _SLIDE,
}
_GROUP_OF = np.array([_GROUPS.get(name, _POINT) for name in OPERATIONS] + [_SKIP], np.int32)  # -1, the last, skips
_INCREASES = np.array([name.endswith("Increasing") for name in OPERATIONS] + [False])
_KINDS = {
    "Color": SATURATION,
    "ColorIncreasing": SATURATION,
    "Contrast": CONTRAST,
    "ContrastIncreasing": CONTRAST,
    "BrightnessIncreasing": BRIGHTNESS,
}
_KIND_OF = np.array([_KINDS.get(name, -1) for name in OPERATIONS] + [-1], np.float32)


FILL = (124, 116, 104)
"""Colour of what a geometric operation uncovers: the ImageNet mean, rounded."""

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # PIL's ImageFilter.SMOOTH

# Cubic convolution with a = -1 for a point d past pixel 0: the weights of the pixels -1, 0, 1, 2 as polynomials in d,
# highest power first; and where a nearest-neighbour warp, which floors, finds these pixels.
_CUBIC = np.array([[-1, 2, -1, 0], [1, -2, 0, 1], [-1, 1, 1, 0], [1, -1, 0, 0]], np.float32).T
_TAPS = np.arange(4) - 1.5


def operation_arguments(
    op: npt.NDArray[np.int32], level: npt.NDArray[np.float32], sign: npt.NDArray[np.float32], image_size: int
) -> dict[str, npt.NDArray[np.generic]]:
    """Levels to arguments, as timm computes them. op (-1 skips), level (0 to 10), sign: [B, n].

    Returns what `apply_operations` takes: policy_group int32 [B, n]; policy_value float32 [B, n, 4], the factor or
    solarise threshold, posterise mask, solarise addend, kind of enhancement; policy_matrix float32 [B, n, 5, 2, 3],
    affine maps from output to input pixels: Rotate's alone, or the row that moves and its four taps.
    """
    share = level.astype(np.float64) / 10
    signed = share * sign

    def select(neutral: float, **values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        named = [op == OPERATIONS.index(name) for name in values]
        return np.select(named, [np.broadcast_to(value, op.shape) for value in values.values()], neutral)

    darkest = np.minimum((share * 256).astype(int), 256)  # inverting is solarising everything
    threshold = select(256, SolarizeIncreasing=256 - darkest, Solarize=darkest, Invert=0)
    factor = np.where(_INCREASES[op], np.maximum(0.1, 1 + 0.9 * signed), 0.1 + 1.8 * share)
    bits = (share * 4).astype(int)
    kept = select(8, PosterizeIncreasing=4 - bits, PosterizeOriginal=4 + bits).astype(int)
    value = (
        np.where(_GROUP_OF[op] == _POINT, threshold, factor),
        256 - (1 << (8 - kept)),
        select(0, SolarizeAdd=np.minimum((share * 110).astype(int), 128)),
        _KIND_OF[op],
    )
    return {
        "policy_group": _GROUP_OF[op],
        "policy_value": np.stack(value, axis=-1).astype(np.float32),
        "policy_matrix": _matrices(op, signed, image_size),
    }


def _matrices(op: npt.NDArray[np.int32], signed: npt.NDArray[np.float64], image_size: int) -> npt.NDArray[np.float32]:
    shear_x, shear_y, translate_x, translate_y = (
        op == OPERATIONS.index(name) for name in ("ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
    )
    taps = np.zeros((*op.shape, 4, 2, 3))
    taps[..., 0, 0] = taps[..., 1, 1] = 1
    taps[..., 0, 1] = (0.3 * signed * shear_x)[..., None]
    taps[..., 1, 0] = (0.3 * signed * shear_y)[..., None]
    taps[..., 0, 2] = (0.45 * image_size * signed * translate_x)[..., None]
    taps[..., 1, 2] = (0.45 * image_size * signed * translate_y)[..., None]
    vertical = shear_y | translate_y
    row = np.where(vertical[..., None], taps[..., 0, 1, :], taps[..., 0, 0, :])
    taps[..., 0, 2] += np.where(vertical[..., None], 0, _TAPS)
    taps[..., 1, 2] += np.where(vertical[..., None], _TAPS, 0)
    angle = -np.deg2rad(30 * signed)
    cos, sin, centre = np.cos(angle), np.sin(angle), image_size / 2
    rotation = np.stack([cos, sin, centre * (1 - cos - sin), -sin, cos, centre * (1 + sin - cos)], axis=-1)
    rotates = op == OPERATIONS.index("Rotate")
    first = np.where(rotates[..., None], rotation, np.concatenate([row, row], axis=-1)).reshape(*op.shape, 1, 2, 3)
    return np.concatenate([first, taps], axis=-3).astype(np.float32)


def apply_operations(images: DataNode, count: int, parameters: dict[str, DataNode], image_size: int) -> DataNode:
    """`count` operations in a row on uint8 [S, S, 3]. Parameters as `operation_arguments` returns them."""
    for step in range(count):
        images = _apply(
            images,
            parameters["policy_group"][step],
            parameters["policy_value"][step],
            parameters["policy_matrix"][step],
            image_size,
        )
    return images


def _apply(images: DataNode, group: DataNode, value: DataNode, matrix: DataNode, image_size: int) -> DataNode:
    # A tree and few parameters, because every branch splits each batch it uses: an operator each, per batch.
    if group < _AUTO_CONTRAST:
        if group >= _ENHANCE:
            if group == _ENHANCE:
                images = enhance(images, value[3], value[0])
            else:
                images = _sharpen(images, value[0], image_size)
        elif group == _POINT:
            images = _point(images, value)
    elif group < _SLIDE:
        if group == _AUTO_CONTRAST:  # noqa: SIM108 - only statements become conditionals of the graph
            images = _auto_contrast(images)
        else:
            images = _equalize(images, image_size)
    elif group == _SLIDE:
        images = _slide(images, matrix, image_size)
    else:
        images = _rotate(images, matrix[0], image_size)
    return images


def _point(images: DataNode, value: DataNode) -> DataNode:
    """Invert, Posterize, Solarize and SolarizeAdd at once; the arguments of those not meant change nothing."""
    levels = fn.cast(value, dtype=types.UINT8)
    kept = images & beside(levels[1], images)
    bright = fn.cast(images >= beside(value[0], images), dtype=types.UINT8)
    dark = fn.cast(images < 128, dtype=types.UINT8)
    # The negative of 1 is 255, all bits. The sum is at most 127 + 110: no overflow.
    return (kept ^ -bright) + dark * beside(levels[2], images)


def _auto_contrast(images: DataNode) -> DataNode:
    """Stretch every channel to 0..255; a constant channel stays."""
    low = fn.reductions.min(images, axes=[0, 1], keep_dims=True)
    span = fn.cast(fn.reductions.max(images, axes=[0, 1], keep_dims=True) - low, dtype=types.FLOAT)
    varies = fn.cast(span > 0, dtype=types.FLOAT)
    scale = varies * 255.0 / dali_math.max(span, 1.0) + (1.0 - varies)
    return truncate((images - low * varies) * scale)


def _equalize(images: DataNode, image_size: int) -> DataNode:
    """Per channel, from DALI's equalize, which is OpenCV's formula.

    OpenCV counts the pixels up to a level, PIL those below it: the same thing upside down. And PIL divides by the
    pixels per level rounded down to an integer, or does nothing where that is 0.
    """
    top = fn.reductions.max(images, axes=[0, 1], keep_dims=True)
    at_top = fn.reductions.sum(fn.cast(images == top, dtype=types.FLOAT), axes=[0, 1], keep_dims=True)
    per_level = (float(image_size**2) - at_top) / 255.0
    step = dali_math.floor(per_level)
    changes = fn.cast(step > 0.0, dtype=types.FLOAT)
    scale = changes * per_level / dali_math.max(step, 1.0)
    return truncate(~fn.equalize(~images) * scale + 0.5 * changes + images * (1.0 - changes))


def _sharpen(images: DataNode, factor: DataNode, image_size: int) -> DataNode:
    """Blend with PIL's SMOOTH; PIL copies the outermost pixels, so they keep the factor 1."""
    inside = np.zeros((image_size, image_size, 1), np.float32)
    inside[1:-1, 1:-1] = 1
    smooth = fn.filter(images, types.Constant(_SMOOTH, device=images.device))
    weight = 1.0 + types.Constant(inside, device=images.device) * (beside(factor, images) - 1.0)
    return truncate(images * weight + smooth * (1.0 - weight))


def _slide(images: DataNode, matrix: DataNode, image_size: int) -> DataNode:
    """Shears and translations, which move pixels along one axis: bicubic from the four taps matrix[1:5].

    Both rows of matrix[0] are the moving coordinate's; the other coordinate stays on the pixels.
    """
    source = _source_coordinates(images, matrix[0, 0:1], image_size)
    weights = _cubic_weights(source)
    return _fill(fn.reductions.sum(_taps(images, matrix[1:5], 4) * weights, axes=[0]), source, image_size)


def _rotate(images: DataNode, matrix: DataNode, image_size: int) -> DataNode:
    """Any affine map: bicubic from four by four taps, along the rows first."""
    shifts = np.zeros((4, 4, 2, 3), np.float32)
    shifts[..., 0, 2], shifts[..., 1, 2] = np.meshgrid(_TAPS, _TAPS)
    source = _source_coordinates(images, matrix, image_size)
    weights = _cubic_weights(source)
    taps = _taps(images, matrix + types.Constant(shifts.reshape(16, 2, 3)), 16)
    taps = fn.reshape(taps, shape=[4, 4, image_size, image_size, 3])
    rows = fn.reductions.sum(taps * weights[:, :, :, 0:1], axes=[1])
    return _fill(fn.reductions.sum(rows * weights[:, :, :, 1:2], axes=[0]), source, image_size)


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
