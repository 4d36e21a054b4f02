"""What random erasing does to thousands of views, against timm's with its own random numbers; see
test_augment_distribution.py.
"""

import functools
import random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from timm.data.random_erasing import RandomErasing

from deit_fast.data.augment.erase import draw_erasing, erase
from deit_fast.recipe.sections import Augment
from tests.oracles.statistics import same_shares

COUNT, SIZE = 2000, 32
ALPHA, PLANTED = 1e-3, 1e-6


def erased(share: float, mode: str, count: int) -> torch.Tensor:
    """Ours, of images of zeros, [COUNT, 3, S, S]."""
    augment = Augment(erase=share, erase_mode=mode, erase_count=count)  # type: ignore[arg-type]
    drawn = draw_erasing(augment, SIZE, 11, 0, np.arange(COUNT), np.zeros(COUNT, np.int64))
    images = torch.full((COUNT, 3, SIZE, SIZE), 7.0)
    return erase(images, torch.from_numpy(drawn.boxes), torch.from_numpy(drawn.keys), mode)  # type: ignore[arg-type]


@functools.cache
def timm_erased(share: float, mode: str, count: int) -> torch.Tensor:
    random.seed(3)
    torch.manual_seed(3)
    return RandomErasing(share, mode=mode, max_count=count, device="cpu")(torch.full((COUNT, 3, SIZE, SIZE), 7.0))


def boxes_and_noise(images: torch.Tensor) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
    """Whether views are erased; of the erased: area, extent's aspect, mean and spread of what is filled in."""
    inside = (images != 7).any(1).float()
    hit = inside.amax((1, 2)) > 0
    inside, filled = inside[hit], torch.where(images[hit] != 7, images[hit], 0.0)
    area = inside.sum((1, 2))
    mean = filled.sum((1, 2, 3)) / (3 * area)
    spread = ((filled**2).sum((1, 2, 3)) / (3 * area)).sqrt()
    aspect = inside.amax(2).sum(1) / inside.amax(1).sum(1)
    found = {"area": area, "aspect": aspect, "mean": mean * area.sqrt(), "spread": spread}
    return hit.long().numpy(), {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize(("mode", "count"), [("pixel", 1), ("pixel", 3), ("rand", 1), ("const", 2)])
def test_erasing_is_distributed_as_timms(mode: str, count: int) -> None:
    mine, reference = (boxes_and_noise(each) for each in (erased(0.25, mode, count), timm_erased(0.25, mode, count)))
    assert same_shares(mine[0], reference[0]) > ALPHA
    for name in mine[1]:
        assert stats.ks_2samp(mine[1][name], reference[1][name]).pvalue > ALPHA, name


def test_other_erasing_is_found_out() -> None:
    shares, measures = boxes_and_noise(timm_erased(0.25, "pixel", 1))
    assert same_shares(boxes_and_noise(erased(0.4, "pixel", 1))[0], shares) < PLANTED
    assert stats.ks_2samp(boxes_and_noise(erased(1.0, "pixel", 6))[1]["area"], measures["area"]).pvalue < PLANTED
    assert stats.ks_2samp(boxes_and_noise(erased(1.0, "rand", 1))[1]["mean"], measures["mean"]).pvalue < PLANTED
