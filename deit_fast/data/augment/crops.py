"""Where a view lies in its image: the crops of training and evaluation as plain arithmetic on sizes and draws."""

import numpy as np
from numpy.typing import NDArray

from deit_fast.recipe.sections import Augment

CROP_PADDING = 4
"""Border that `src` reflects and `pad` blackens around the resized image, px."""
_TRIES = 10
CROP_DRAWS = 2 * _TRIES + 2
"""Uniform numbers that a crop takes, at most."""


def crop_geometry(
    augment: Augment, image_size: int, sizes: NDArray[np.int32], draws: NDArray[np.float64]
) -> NDArray[np.int32]:
    """The crop of B views as ViewParams.geometry has it, [B, 4].

    sizes: int32 [B, 2], height and width. draws: uniform in [0, 1), [B, CROP_DRAWS].
    """
    if augment.crop == "rrc":
        return _resized_crop(augment, sizes, draws)
    if augment.crop == "rrc_linear":
        return _fitting_crop(augment, sizes, draws)
    if augment.crop == "center":
        return eval_geometry(sizes, image_size, 1.0)
    return _bordered_crop(image_size, sizes, draws)


def eval_geometry(sizes: NDArray[np.int32], image_size: int, crop_ratio: float) -> NDArray[np.int32]:
    """Evaluation's resize and centre crop, [B, 4]: height, width of the resized image, top, left of the S x S window.

    sizes: int32 [B, 2], height and width. The shorter side becomes int(S / crop_ratio); the longer side is truncated
    and the offsets are rounded half to even, both as torchvision's Resize and CenterCrop do.
    """
    resized = _resize_shorter(sizes, int(image_size / crop_ratio))
    return np.concatenate((resized, np.rint((resized - image_size) / 2)), axis=1).astype(np.int32)


def _resized_crop(augment: Augment, sizes: NDArray[np.int32], draws: NDArray[np.float64]) -> NDArray[np.int32]:
    """RandomResizedCrop: the first of ten crops that fits, else the largest central one within the aspect range.

    draws: ten areas, ten aspect ratios, then where the crop lies.
    """
    height, width = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    area = height * width * between(draws[:, :_TRIES], *augment.scale)
    log_ratio = np.log(augment.ratio)
    ratio = np.exp(between(draws[:, _TRIES : 2 * _TRIES], *log_ratio))
    crops = np.rint(np.sqrt((area / ratio, area * ratio)))  # [2, B, 10]: height, width; half to even like round()
    fits = (crops[0] > 0) & (crops[0] <= height) & (crops[1] > 0) & (crops[1] <= width)
    first = np.argmax(fits, axis=1)[:, None]
    low, high = augment.ratio
    central = np.concatenate((np.minimum(height, np.rint(width / low)), np.minimum(width, np.rint(height * high))), 1)
    central = np.maximum(central, 1)
    found = fits.any(axis=1, keepdims=True)
    crop = np.where(found, np.concatenate([np.take_along_axis(side, first, 1) for side in crops], 1), central)
    room = sizes - crop
    corner = np.where(found, np.floor(draws[:, 2 * _TRIES : 2 * _TRIES + 2] * (room + 1)), room // 2)
    return np.concatenate((corner, crop), axis=1).astype(np.int32)


def _fitting_crop(augment: Augment, sizes: NDArray[np.int32], draws: NDArray[np.float64]) -> NDArray[np.int32]:
    """PASSL's RandCropImage (passl/data/preprocess): the aspect ratio is uniform, not log-uniform, and the range of
    the area is cut down to what fits with it, so that the first crop always does; its sides are truncated.

    draws: the aspect ratio, the area, then where the crop lies.
    """
    height, width = sizes.T.astype(np.float64)
    ratio = between(draws[:, 0], *augment.ratio)
    largest = np.minimum(width / height / ratio, height / width * ratio)
    low, high = (np.minimum(share, largest) for share in augment.scale)
    side = np.sqrt(height * width * (low + draws[:, 1] * (high - low)))
    crop = np.stack((side / np.sqrt(ratio), side * np.sqrt(ratio)), axis=1)
    crop = np.clip(np.floor(crop), 1, sizes)
    corner = np.floor(draws[:, 2:4] * (sizes - crop + 1))
    return np.concatenate((corner, crop), axis=1).astype(np.int32)


def _bordered_crop(image_size: int, sizes: NDArray[np.int32], draws: NDArray[np.float64]) -> NDArray[np.int32]:
    """Resize the shorter side to S, then any S x S window of the image with a border of 4 px. draws: top and left."""
    resized = _resize_shorter(sizes, image_size)
    room = resized + 2 * CROP_PADDING - image_size
    return np.concatenate((resized, np.floor(draws[:, :2] * (room + 1)) - CROP_PADDING), axis=1).astype(np.int32)


def _resize_shorter(sizes: NDArray[np.int32], shorter: int) -> NDArray[np.int64]:
    """[B, 2] sizes with the shorter side at `shorter` and the longer one truncated, as torchvision's Resize."""
    wide = sizes.astype(np.int64)
    return shorter * wide // wide.min(axis=1, keepdims=True)


def between(draws: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Uniform numbers of [0, 1) moved to [low, high)."""
    return low + draws * (high - low)
