"""Every random parameter of augmentation, drawn before any pixel is touched.

Pure functions of (seed, epoch, index, view): the image graph itself holds no randomness, so a run can resume at any
step and the number of processes changes no pixel.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.philox import Stream, normal, uniform
from deit_fast.sections import Augment

GREYSCALE, SOLARISE, BLUR = range(3)
RAND_AUGMENT_OPS = 15
SRC_PADDING = 4
_CROP_TRIES = 10
_BLUR_SIGMA = 0.1, 2.0
_ORDERS = np.array(list(permutations(range(3))), np.int32)


@dataclass(frozen=True)
class ViewParams:
    """Augmentation parameters of B views of images."""

    geometry: NDArray[np.int32]
    """[B, 4]. rrc: top, left, height, width in the image as stored, px; the crop is then resized to S x S.
    src: height, width of the resized image, then top, left (from -4, into the reflected border) of the S x S window."""
    flip: NDArray[np.int32]
    """[B], 0 or 1."""
    operation: NDArray[np.int32]
    """[B]. 3-Augment's choice: 0 greyscale, 1 solarise, 2 blur; -1 where the policy is another."""
    sigma: NDArray[np.float32]
    """[B]. Standard deviation of the blur, px, in [0.1, 2)."""
    jitter: NDArray[np.float32]
    """[B, 3]. Factors of brightness, contrast, saturation; ones where jitter is off."""
    order: NDArray[np.int32]
    """[B, 3]. The order of the three: a permutation of 0 brightness, 1 contrast, 2 saturation."""
    rand_op: NDArray[np.int32]
    """[B, n]. RandAugment's operations, 0 to 14, -1 for one left out; n is 0 where the policy is another."""
    rand_magnitude: NDArray[np.float32]
    """[B, n]. Their level, in [0, 10]."""
    rand_sign: NDArray[np.float32]
    """[B, n]. Their direction, -1 or 1."""


def draw_views(
    augment: Augment,
    image_size: int,
    seed: int,
    epoch: int,
    indices: NDArray[np.int64],
    views: NDArray[np.int64],
    sizes: NDArray[np.int32],
) -> ViewParams:
    """Parameters of B augmented views: view views[b] of image indices[b], stored at sizes[b] (height, width) px.

    3-Augment as in DeiT III (arXiv:2204.07118, section 3.2) and facebookresearch/deit augment.py; RandAugment's draws
    as in timm's rand-mM-mstdS-inc1.
    """

    def draw(stream: Stream, draws: int) -> NDArray[np.float64]:
        return uniform(seed, stream, epoch, indices, views, draws)

    count, ops = len(indices), augment.rand_ops if augment.policy == "rand_augment" else 0
    if augment.crop == "rrc":
        geometry = _resized_crop(augment, sizes, draw(Stream.CROP, 2 * _CROP_TRIES + 2))
    else:
        geometry = _simple_random_crop(image_size, sizes, draw(Stream.CROP, 2))
    policy = draw(Stream.POLICY, max(2, 3 * ops))
    jitter = draw(Stream.JITTER, 4)
    rand = policy[:, : 3 * ops].reshape(count, 3, ops)
    operation = _choose(policy[:, 0], 3) if augment.policy == "three_augment" else np.full(count, -1, np.int32)
    magnitude = augment.rand_magnitude + augment.rand_std * normal(seed, Stream.MAGNITUDE, epoch, indices, views, ops)
    return ViewParams(
        geometry=geometry,
        flip=(draw(Stream.FLIP, 1)[:, 0] < augment.flip).astype(np.int32),
        operation=operation,
        sigma=_between(policy[:, 1], *_BLUR_SIGMA).astype(np.float32),
        jitter=_between(jitter[:, :3], 1 - augment.color_jitter, 1 + augment.color_jitter).astype(np.float32),
        order=_ORDERS[_choose(jitter[:, 3], len(_ORDERS))],
        rand_op=np.where(rand[:, 1] < 0.5, _choose(rand[:, 0], RAND_AUGMENT_OPS), np.int32(-1)),
        rand_magnitude=np.clip(magnitude, 0, 10).astype(np.float32),
        rand_sign=np.where(rand[:, 2] < 0.5, np.float32(-1), np.float32(1)),
    )


def eval_geometry(sizes: NDArray[np.int32], image_size: int, crop_ratio: float) -> NDArray[np.int32]:
    """Evaluation's resize and centre crop, [B, 4]: height, width of the resized image, top, left of the S x S window.

    sizes: int32 [B, 2], height and width. The shorter side becomes int(S / crop_ratio); the longer side is truncated
    and the offsets are rounded half to even, both as torchvision's Resize and CenterCrop do.
    """
    resized = _resize_shorter(sizes, int(image_size / crop_ratio))
    return np.concatenate((resized, np.rint((resized - image_size) / 2)), axis=1).astype(np.int32)


def _resized_crop(augment: Augment, sizes: NDArray[np.int32], draws: NDArray[np.float64]) -> NDArray[np.int32]:
    """RandomResizedCrop: the first of ten crops that fits, else the largest central one within the aspect range.

    draws: [B, 22], ten areas, ten aspect ratios, then where the crop lies.
    """
    height, width = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    area = height * width * _between(draws[:, :_CROP_TRIES], *augment.scale)
    log_ratio = np.log(augment.ratio)
    ratio = np.exp(_between(draws[:, _CROP_TRIES : 2 * _CROP_TRIES], *log_ratio))
    crops = np.rint(np.sqrt((area / ratio, area * ratio)))  # [2, B, 10]: height, width; half to even like round()
    fits = (crops[0] > 0) & (crops[0] <= height) & (crops[1] > 0) & (crops[1] <= width)
    first = np.argmax(fits, axis=1)[:, None]
    low, high = augment.ratio
    central = np.concatenate((np.minimum(height, np.rint(width / low)), np.minimum(width, np.rint(height * high))), 1)
    central = np.maximum(central, 1)
    found = fits.any(axis=1, keepdims=True)
    crop = np.where(found, np.concatenate([np.take_along_axis(side, first, 1) for side in crops], 1), central)
    room = sizes - crop
    corner = np.where(found, np.floor(draws[:, 2 * _CROP_TRIES :] * (room + 1)), room // 2)
    return np.concatenate((corner, crop), axis=1).astype(np.int32)


def _simple_random_crop(image_size: int, sizes: NDArray[np.int32], draws: NDArray[np.float64]) -> NDArray[np.int32]:
    """Resize the shorter side to S, then any S x S window of the image with a border of 4 px. draws: [B, 2]."""
    resized = _resize_shorter(sizes, image_size)
    room = resized + 2 * SRC_PADDING - image_size
    return np.concatenate((resized, np.floor(draws * (room + 1)) - SRC_PADDING), axis=1).astype(np.int32)


def _resize_shorter(sizes: NDArray[np.int32], shorter: int) -> NDArray[np.int64]:
    """[B, 2] sizes with the shorter side at `shorter` and the longer one truncated, as torchvision's Resize."""
    wide = sizes.astype(np.int64)
    return shorter * wide // wide.min(axis=1, keepdims=True)


def _between(draws: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    return low + draws * (high - low)


def _choose(draws: NDArray[np.float64], choices: int) -> NDArray[np.int32]:
    return (draws * choices).astype(np.int32)
