"""Random erasing (arXiv:1708.04896) as timm does it: boxes are drawn on the host and filled on the device.

Filling comes after normalisation. Boxes and noise are pure functions of (seed, epoch, index, view): the noise depends
on the view's key and the pixel's position alone. Neither the number of processes nor the other images of the batch
change the noise.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deit_fast.recipe.sections import Augment
from deit_fast.runtime.philox import Stream, uniform

_TRIES = 10
_AREA = 0.02, 1 / 3  # share of the image that all boxes of a view cover together
_LOG_RATIO = math.log(0.3), math.log(1 / 0.3)
_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class EraseParams:
    """The boxes to erase in B views."""

    boxes: NDArray[np.int32]
    """[B, n, 4]. top, left, bottom, right of each box, px; four zeros stand for no box. Later boxes cover earlier
    ones."""
    keys: NDArray[np.int64]
    """[B, 2]. Keys of the noise: two words below 2^32 for each view."""


def draw_erasing(
    augment: Augment, image_size: int, seed: int, epoch: int, indices: NDArray[np.int64], views: NDArray[np.int64]
) -> EraseParams:
    """The erasing of B views of S x S px, where view b is the view number views[b] of image indices[b].

    indices, views: int64 [B]. A view is erased with probability augment.erase, by 1 to augment.erase_count boxes. The
    boxes of a view share an area of 2 % to a third of the view. Each box has its own draw of area, at a log-uniform
    aspect ratio of 0.3 to 1 / 0.3. A box that does not fit after ten tries is left out. Source of these numbers: timm's
    `data/random_erasing.py`.
    """
    count, most = len(indices), augment.erase_count
    draws = uniform(seed, Stream.ERASE, epoch, indices, views, 4 + most * (2 * _TRIES + 2))
    boxes_of = 1 + (draws[:, 1] * most).astype(np.int64)[:, None]
    box = draws[:, 4:].reshape(count, most, 2 * _TRIES + 2)
    low, high = _AREA
    area = image_size**2 * (low + (high - low) * box[:, :, :_TRIES]) / boxes_of[..., None]
    ratio = np.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * box[:, :, _TRIES : 2 * _TRIES])
    sides = np.rint(np.sqrt((area * ratio, area / ratio))).astype(np.int64)  # [2, B, n, tries]: height, width
    fits = np.max(sides, axis=0) < image_size
    size = np.take_along_axis(sides, np.argmax(fits, axis=2)[None, :, :, None], 3)[..., 0]  # [2, B, n]
    corner = np.floor(np.moveaxis(box[:, :, 2 * _TRIES :], 2, 0) * (image_size - size + 1)).astype(np.int64)
    erased = (draws[:, :1] < augment.erase) & (np.arange(most) < boxes_of) & fits.any(axis=2)
    edges = np.stack((*corner, *(corner + size)), axis=-1)
    return EraseParams(
        boxes=np.where(erased[..., None], edges, 0).astype(np.int32),
        keys=(draws[:, 2:4] * 2.0**32).astype(np.int64),
    )


def erase(images: Tensor, boxes: Tensor, keys: Tensor, mode: Literal["pixel", "rand", "const"]) -> Tensor:
    """Normalised images [B, C, S, S] with their boxes [B, n, 4] filled; keys [B, 2] int64. No branch on the data.

    pixel: normal noise per value. rand: one normal value per box and channel. const: zeros.
    """
    channels, height, width = images.shape[1:]
    place = torch.arange(channels * height * width, device=images.device).view(channels, height, width)
    row, column = place[0] // width, place[0] % width
    noise = normal_noise(keys, place) if mode == "pixel" else torch.zeros((), device=images.device)
    for number, box in enumerate(boxes.unbind(1)):
        if mode == "rand":
            noise = normal_noise(keys, place[:, :1, :1] + number)  # B C 1 1, apart by H W > n
        top, left, bottom, right = box.view(-1, 4, 1, 1, 1).unbind(1)  # each B 1 1 1
        inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)  # B 1 H W
        images = torch.where(inside, noise.to(images.dtype), images)
    return images


def normal_noise(keys: Tensor, counter: Tensor) -> Tensor:
    """Standard normal numbers, fp32 [B, *counter.shape], each a function of (key, counter) alone.

    keys: int64 [B, 2], each word below 2^32. counter: int64 [...], below 2^31. The numbers are Box and Muller's
    transform of two hashes. The hashes are computed on 32-bit integers and are the same on every device; the
    floating-point part may differ between devices in the last bits.
    """
    first, second = keys.view(-1, 2, *(1 for _ in counter.shape)).unbind(1)

    def uniform_at(counter: Tensor) -> Tensor:
        word = _scramble(_scramble((counter + first) & _WORD) ^ second)
        return (word.float() + 0.5) * 2.0**-32  # never 0; where the sum rounds to 1, the radius is 0

    radius = torch.sqrt(-2.0 * torch.log(uniform_at(2 * counter)))
    return radius * torch.cos(2.0 * math.pi * uniform_at(2 * counter + 1))


def _scramble(word: Tensor) -> Tensor:
    """A bijection of 32-bit words by multiplying and shifting, in which each output bit depends on all input bits.

    It is "lowbias32" by C. Wellons. The second factor is written as 0x846CA68B - 2^32, which is the same modulo 2^32,
    so that no product overflows int64.
    """
    word = word ^ (word >> 16)
    word = (word * 0x7FEB352D) & _WORD
    word = word ^ (word >> 15)
    word = (word * (0x846CA68B - 2**32)) & _WORD
    return word ^ (word >> 16)
