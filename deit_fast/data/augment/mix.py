"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899): drawn on the host, applied to the batch on the device.

The draws are pure functions of (seed, step, place in the global batch), so the number of processes changes no pixel and
no target. Mixing is one expression without branches, which torch.compile can make part of the training step.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deit_fast.recipe.sections import Mix
from deit_fast.runtime.philox import Stream, generator

_NOTHING = (0, 0, 0, 0)


@dataclass(frozen=True)
class MixParams:
    """Mixing parameters of b images of a global batch; the partner of position i is global_batch - 1 - i."""

    lam: NDArray[np.float32]
    """[b]. The image's own share in pixels and target; its partner has the share 1 - lam."""
    box: NDArray[np.int32]
    """[b, 4]. top, left, bottom, right of the box that CutMix pastes from the partner, px; zeros where nothing is
    pasted."""
    cutmix: NDArray[np.bool_]
    """[b]. Whether the draw was CutMix rather than mixup."""


def draw_mix(
    mix: Mix, seed: int, step: int, positions: NDArray[np.int64], global_batch: int, image_size: int
) -> MixParams:
    """Mixup or CutMix for `positions` (int64 [b]) of the global batch of one step, whose images are S x S.

    This is timm's Mixup, except that the partner is found by reversing the batch. mix.mode decides which images share
    one draw of operation, lambda and box: in "batch" all mix.group images of a mixing group, which corresponds to
    timm's batch of one GPU; in "pair" the two images of a pair; in "elem" each image draws alone, and its partner then
    takes another share. The outcome depends on (seed, step, position) alone and is the same in every process.
    """
    shared = positions
    if mix.mode != "elem":
        shared = np.minimum(positions, global_batch - 1 - positions)
    if mix.mode == "batch":
        shared = shared // (mix.group // 2)
    units, member = np.unique(shared, return_inverse=True)
    drawn = [_draw(mix, generator(seed, Stream.MIX, int(unit), step), image_size) for unit in units]
    lam, box, cutmix = zip(*drawn, strict=True) if drawn else ((), (), ())
    return MixParams(
        lam=np.array(lam, np.float32)[member],
        box=np.array(box, np.int32).reshape(-1, 4)[member],
        cutmix=np.array(cutmix, np.bool_)[member],
    )


def mix_images(images: Tensor, lam: Tensor, box: Tensor, cutmix: Tensor) -> Tensor:
    """Each image mixed with its partner in the reversed batch: timm's Mixup in batch mode, with a draw per image.

    images: float [B, C, H, W]. lam: float [B], the image's own share. box: int [B, 4], top, left, bottom and right of
    the rectangle in which a CutMix image shows its partner. cutmix: bool [B]. The result is one expression without
    branches, which compiles into the training step whatever was drawn.
    """
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    top, left, bottom, right = box[:, :, None].unbind(1)  # each B 1
    inside_rows = (rows >= top) & (rows < bottom)  # B H
    inside_columns = (columns >= left) & (columns < right)  # B W
    pasted = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]  # B 1 H W
    share = torch.where(cutmix[:, None, None, None], (~pasted).to(lam.dtype), lam[:, None, None, None])
    partner = images.flip(0)
    return partner + share.to(images.dtype) * (images - partner)


def mix_targets(labels: Tensor, num_classes: int, smoothing: float, lam: Tensor | None) -> Tensor:
    """Targets [B, num_classes] of labels [B]: smoothed one-hot vectors, mixed with their reversal by lam [B].

    lam: None leaves the targets unmixed. Smoothing is timm's: every class gets smoothing / num_classes, and the label
    gets 1 - smoothing in addition.
    """
    off = smoothing / num_classes
    targets = torch.full((labels.shape[0], num_classes), off, device=labels.device)
    targets.scatter_(1, labels[:, None], 1.0 - smoothing + off)
    if lam is None:
        return targets
    return targets * lam[:, None] + targets.flip(0) * (1.0 - lam[:, None])


def _draw(mix: Mix, draws: np.random.RandomState, image_size: int) -> tuple[float, tuple[int, int, int, int], bool]:
    """lam, the box (top, left, bottom, right), and whether the draw is CutMix."""
    can_mix, can_cut = mix.mixup > 0, mix.cutmix > 0 or mix.cutmix_minmax is not None
    if not (can_mix or can_cut) or draws.random() >= mix.prob:
        return 1.0, _NOTHING, False
    if not can_cut or (can_mix and draws.random() >= mix.switch_prob):
        return float(draws.beta(mix.mixup, mix.mixup)), _NOTHING, False
    if mix.cutmix_minmax is None:
        box = _draw_square(mix.cutmix, draws, image_size)
    else:
        box = _draw_rectangle(mix.cutmix_minmax, draws, image_size)
    top, left, bottom, right = box
    area = (bottom - top) * (right - left)
    return 1 - area / image_size**2, box if area else _NOTHING, True


def _draw_square(alpha: float, draws: np.random.RandomState, image_size: int) -> tuple[int, int, int, int]:
    """A square that covers 1 - lambda of the image around a random pixel, cut off at the image's border.

    lambda is drawn from Beta(alpha, alpha).
    """
    side = int(image_size * np.sqrt(1 - draws.beta(alpha, alpha)))
    row, column = (int(centre) for centre in draws.randint(image_size, size=2))
    return (
        max(row - side // 2, 0),
        max(column - side // 2, 0),
        min(row + (side + 1) // 2, image_size),
        min(column + (side + 1) // 2, image_size),
    )


def _draw_rectangle(
    minmax: tuple[float, float], draws: np.random.RandomState, image_size: int
) -> tuple[int, int, int, int]:
    """A rectangle within the image.

    minmax: range of its sides as shares of the image's sides, without the maximum itself, as in timm.
    """
    low, high = (int(image_size * share) for share in minmax)
    height, width = (int(side) for side in draws.randint(low, high, size=2))
    top, left = int(draws.randint(image_size - height + 1)), int(draws.randint(image_size - width + 1))
    return top, left, top + height, left + width
