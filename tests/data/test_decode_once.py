"""Repeated views of an image that is decoded once."""

from pathlib import Path

import pytest
import torch

from deit_fast.data.loader import batches as loader_module
from deit_fast.data.loader.batches import TrainLoader
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.sources.open import open_source
from deit_fast.recipe.sections import Augment

CPU, SIZE = torch.device("cpu"), 32


@pytest.mark.parametrize("crop", ["rrc", "src"])
def test_decoding_once_changes_no_pixel(folder_data: Path, crop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(folder_data), "train")
    augment = Augment(crop=crop)
    sampler = TrainSampler(len(source), 3, 12, 0, layout="together")
    decoded: list[int] = []
    inputs = loader_module.train_inputs

    def counted(*given: object) -> list[object]:
        made = inputs(*given)
        decoded.append(sum(len(data) > 700 for data in made[0]))
        return made

    monkeypatch.setattr(loader_module, "train_inputs", counted)
    views = []
    for once in (False, True):
        loader = TrainLoader(source, augment, SIZE, [sampler], 0, CPU, 2, stop_step=4, decode_once=once)
        views.append(torch.cat([batch.images for batch in loader]))
        loader.close()
    assert torch.equal(*views)
    assert decoded == [12] * 4 + [4] * 4
