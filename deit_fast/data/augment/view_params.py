"""The random parameters of augmentation, drawn before any pixel is touched.

They are pure functions of (seed, epoch, index, view), and the image graph holds no randomness. A run can therefore
resume at any step, and the number of processes changes no pixel.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.augment.policies import POLICIES, draw_operations
from deit_fast.recipe.sections import Augment
from deit_fast.runtime.philox import Stream, uniform

GREYSCALE, SOLARISE, BLUR = range(3)
BICUBIC, BILINEAR = range(2)
_KERNELS = {"bicubic": (BICUBIC,), "bilinear": (BILINEAR,), "random": (BICUBIC, BILINEAR)}
_BLUR_SIGMA = 0.1, 2.0
_ORDERS = np.array(list(permutations(range(3))), np.int32)
CROP_PADDING = 4
"""Border around the resized image, px: `src` reflects the image there, `pad` makes it black."""
_TRIES = 10
CROP_DRAWS = 2 * _TRIES + 2
"""The largest number of uniform numbers that a crop takes."""


@dataclass(frozen=True)
class ViewParams:
    """Augmentation parameters of B views of images."""

    geometry: NDArray[np.int32]
    """[B, 4], px. With the crops rrc and rrc_linear: top, left, height, width of the crop in the image as stored, which
    is then resized to S x S. With the other crops: height, width of the resized image, then top, left of the S x S
    window in it, which start at -4 where the window may reach into the border (not for center)."""
    interpolation: NDArray[np.int32]
    """[B]. The resize's filter: 0 bicubic, 1 bilinear."""
    flip: NDArray[np.int32]
    """[B]. 1 mirrors the view left to right, 0 does not."""
    operation: NDArray[np.int32]
    """[B]. 3-Augment's choice: 0 greyscale, 1 solarise, 2 blur; -1 with any other policy."""
    sigma: NDArray[np.float32]
    """[B]. Standard deviation of the blur, px, in [0.1, 2)."""
    jitter: NDArray[np.float32]
    """[B, 3]. Factors of brightness, contrast, saturation; ones where jitter is off."""
    order: NDArray[np.int32]
    """[B, 3]. The order in which the three are applied: a permutation of 0 brightness, 1 contrast, 2 saturation."""
    policy_op: NDArray[np.int32]
    """[B, n]. RandAugment's or AutoAugment's operations, as indices of policies.operation_names; -1 for none. n is 0
    with any other policy."""
    policy_level: NDArray[np.float32]
    """[B, n]. Level of each operation, in [0, 10]."""
    policy_sign: NDArray[np.float32]
    """[B, n]. Sign of each operation, -1 or 1."""


def draw_views(
    augment: Augment,
    image_size: int,
    seed: int,
    epoch: int,
    indices: NDArray[np.int64],
    views: NDArray[np.int64],
    sizes: NDArray[np.int32],
) -> ViewParams:
    """Parameters of B augmented views: view views[b] of image indices[b], stored at sizes[b] px.

    indices, views: int64 [B]. sizes: int32 [B, 2], height and width. 3-Augment follows DeiT III (arXiv:2204.07118,
    section 3.2; facebookresearch/deit augment.py); `policies.py` draws the other policies.
    """

    def draw(stream: Stream, draws: int) -> NDArray[np.float64]:
        return uniform(seed, stream, epoch, indices, views, draws)

    count = len(indices)
    policy, jitter = draw(Stream.POLICY, 2), draw(Stream.JITTER, 4)
    operation = _choose(policy[:, 0], 3) if augment.policy == "three_augment" else np.full(count, -1, np.int32)
    kernels = np.array(_KERNELS[augment.interpolation], np.int32)
    drawn = np.zeros((count, 0), np.int32), np.zeros((count, 0), np.float32), np.zeros((count, 0), np.float32)
    if augment.policy in POLICIES:
        drawn = draw_operations(augment, seed, epoch, indices, views)
    policy_op, policy_level, policy_sign = drawn
    return ViewParams(
        geometry=crop_geometry(augment, image_size, sizes, draw(Stream.CROP, CROP_DRAWS)),
        interpolation=kernels[_choose(draw(Stream.INTERPOLATION, 1)[:, 0], len(kernels))],
        flip=(draw(Stream.FLIP, 1)[:, 0] < augment.flip).astype(np.int32),
        operation=operation,
        sigma=between(policy[:, 1], *_BLUR_SIGMA).astype(np.float32),
        jitter=between(jitter[:, :3], 1 - augment.color_jitter, 1 + augment.color_jitter).astype(np.float32),
        order=_ORDERS[_choose(jitter[:, 3], len(_ORDERS))],
        policy_op=policy_op,
        policy_level=policy_level,
        policy_sign=policy_sign,
    )


def _choose(draws: NDArray[np.float64], choices: int) -> NDArray[np.int32]:
    return (draws * choices).astype(np.int32)


def crop_geometry(
    augment: Augment, image_size: int, sizes: NDArray[np.int32], draws: NDArray[np.float64]
) -> NDArray[np.int32]:
    """The crops of B views in the form of ViewParams.geometry, [B, 4].

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

    sizes: int32 [B, 2], height and width. The shorter side becomes int(S / crop_ratio) px. The longer side is truncated
    as by torchvision's Resize, and the offsets are rounded half to even as by its CenterCrop.
    """
    resized = _resize_shorter(sizes, int(image_size / crop_ratio))
    return np.concatenate((resized, np.rint((resized - image_size) / 2)), axis=1).astype(np.int32)


def _resized_crop(augment: Augment, sizes: NDArray[np.int32], draws: NDArray[np.float64]) -> NDArray[np.int32]:
    """RandomResizedCrop: the first of ten crops that fits, else the largest central one within the aspect range.

    draws: ten areas, ten aspect ratios, then the position of the crop.
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
    """PASSL's RandCropImage (passl/data/preprocess), whose first crop always fits.

    Its aspect ratio is uniform, not log-uniform. Its range of areas is cut down to the areas that fit with that aspect
    ratio. The sides are truncated. draws: the aspect ratio, the area, then the position of the crop.
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
    """The shorter side resized to S, then any S x S window of the image with a border of 4 px. draws: top and left."""
    resized = _resize_shorter(sizes, image_size)
    room = resized + 2 * CROP_PADDING - image_size
    return np.concatenate((resized, np.floor(draws[:, :2] * (room + 1)) - CROP_PADDING), axis=1).astype(np.int32)


def _resize_shorter(sizes: NDArray[np.int32], shorter: int) -> NDArray[np.int64]:
    """Sizes [B, 2] with the shorter side at `shorter` px and the longer side truncated, as by torchvision's Resize."""
    wide = sizes.astype(np.int64)
    return shorter * wide // wide.min(axis=1, keepdims=True)


def between(draws: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), of any shape [...], scaled to [low, high)."""
    return low + draws * (high - low)
