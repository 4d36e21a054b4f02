"""Repeated views of an image that is decoded once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deit_fast.data.loader.batches import TrainLoader
from deit_fast.data.loader.order import FullOrder
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.sources.open import open_source
from deit_fast.recipe.sections import Augment

CPU, SIZE = torch.device("cpu"), 32


class Counting(TrainLoader):
    """Counts the images that DALI gets to decode; those in the places of repeated views are smaller than any."""

    decoded: list[int]

    def _feed(self) -> list[Any]:
        inputs = super()._feed()
        self.decoded.append(sum(len(data) > 700 for data in inputs[0]))
        return inputs


@pytest.mark.parametrize("crop", ["rrc", "src"])
def test_decoding_once_changes_no_pixel(folder_data: Path, crop: str) -> None:
    source = open_source(str(folder_data), "train")
    sampler = TrainSampler(FullOrder(len(source), 0), 3, 12, layout="together")
    views, decoded = [], []
    for once in (False, True):
        loader = Counting(source, Augment(crop=crop), SIZE, [sampler], 0, CPU, 2, stop_step=4, decode_once=once)
        loader.decoded = []
        views.append(torch.cat([batch.images for batch in loader]))
        decoded.append(loader.decoded)
        loader.close()
    assert torch.equal(*views)
    assert decoded == [[12] * 4, [4] * 4]
