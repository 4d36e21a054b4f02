"""Every random parameter of augmentation, drawn before any pixel is touched.

Pure functions of (seed, epoch, index, view): the image graph itself holds no randomness, so a run can resume at any
step and the number of processes changes no pixel.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.augment.crops import CROP_DRAWS, between, crop_geometry
from deit_fast.data.augment.philox import Stream, uniform
from deit_fast.data.augment.policies import draw_operations
from deit_fast.recipe.sections import Augment

GREYSCALE, SOLARISE, BLUR = range(3)
BICUBIC, BILINEAR = range(2)
_KERNELS = {"bicubic": (BICUBIC,), "bilinear": (BILINEAR,), "random": (BICUBIC, BILINEAR)}
_BLUR_SIGMA = 0.1, 2.0
_ORDERS = np.array(list(permutations(range(3))), np.int32)


@dataclass(frozen=True)
class ViewParams:
    """Augmentation parameters of B views of images."""

    geometry: NDArray[np.int32]
    """[B, 4]. rrc, rrc_linear: top, left, height, width in the image as stored, px; then resized to S x S.
    Else: height, width of the resized image, then top, left (from -4, into the border, but for center) of the S x S
    window."""
    interpolation: NDArray[np.int32]
    """[B]. Of the resize: 0 bicubic, 1 bilinear."""
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
    policy_op: NDArray[np.int32]
    """[B, n]. RandAugment's or AutoAugment's operations, indices of policies.OPERATIONS, -1 for one left out; n is 0
    where the policy is another."""
    policy_level: NDArray[np.float32]
    """[B, n]. Their level, in [0, 10]."""
    policy_sign: NDArray[np.float32]
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

    3-Augment as in DeiT III (arXiv:2204.07118, section 3.2) and facebookresearch/deit augment.py; for the other
    policies see `policies.py`.
    """

    def draw(stream: Stream, draws: int) -> NDArray[np.float64]:
        return uniform(seed, stream, epoch, indices, views, draws)

    count = len(indices)
    policy, jitter = draw(Stream.POLICY, 2), draw(Stream.JITTER, 4)
    operation = _choose(policy[:, 0], 3) if augment.policy == "three_augment" else np.full(count, -1, np.int32)
    kernels = np.array(_KERNELS[augment.interpolation], np.int32)
    policy_op, policy_level, policy_sign = draw_operations(augment, seed, epoch, indices, views)
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
