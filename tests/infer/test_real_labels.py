"""ImageNet-ReaL's labels: joined by the number in the file's name, and refused where they are another data set's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deit_fast.data.loader.batches import Batch
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.open import open_source
from deit_fast.infer.evaluate import evaluate
from deit_fast.infer.metrics.real import build_metric
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.world import World
from tests.image_files import encode, write

NUMBERS = {"a": [3, 1], "b": [5, 2], "c": [4]}  # the images of each class
CPU = World(0, 1, torch.device("cpu"))
LISTS = [[0], [0, 2], [], [2], [1, 0]]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    for name, numbers in NUMBERS.items():
        for number in numbers:
            write(tmp_path / "val" / name / f"ILSVRC2012_val_{number:08}.JPEG", encode())
    return open_source(str(tmp_path / "val"))


def refused(path: Path, source: Source) -> str:
    with pytest.raises(DataError) as error:
        build_metric(str(path), source)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_images_without_labels_do_not_count(source: Source, tmp_path: Path) -> None:
    real = build_metric(str(write(tmp_path / "real.json", json.dumps(LISTS).encode())), source)
    order = np.array([4, 0, 2, 1, 3, 0])  # the last is padding
    # The source has images 1 and 3 of a, 2 and 5 of b, 4 of c.
    for predictions, hits in (([0, 0, 2, 1, 2], 4), ([1, 0, 1, 2, 0], 0), ([0, 2, 0, 0, 1], 3)):
        logits = torch.eye(3)[predictions]
        none = torch.zeros(3, dtype=torch.long)
        batches = [
            Batch(torch.from_numpy(each), none, each, None, 0, number, valid)
            for number, (each, valid) in enumerate(((order[:3], 3), (order[3:], 2)))
        ]
        scores = evaluate(lambda images, logits=logits: logits[images], batches, CPU, metrics={"real": real})
        assert scores.values == {"real_top1": 100 * hits / 4, "real_images": 4}


def test_wrong_files_and_counts_are_refused(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "real.json"
    assert refused(path, source).startswith(f"{path}: expected a readable list")
    for content, message in (
        ({"a": 1}, "expected a list with a list"),
        ([0, 1, 2, 3, 4], "expected a list with a list"),
        (LISTS[:4], f"expected labels for the 5 images of {tmp_path / 'val'}, found 4 lists"),
        ([*LISTS, []], "found 6 lists"),
        ([*LISTS[:4], [3]], "expected labels from 0 to 2, found 3"),
        ([*LISTS[:4], [-1]], "found -1"),
        ([*LISTS[:4], [1.0]], "found 1.0"),
        ([*LISTS[:4], [True]], "found True"),
        ([[]] * 5, "every list is empty"),
    ):
        path.write_text(json.dumps(content))
        assert message in refused(path, source)
    path.write_text(json.dumps(LISTS))
    image = tmp_path / "val" / "c" / "ILSVRC2012_val_00000004.JPEG"
    for name, message in (
        ("ILSVRC2012_val_00000006.JPEG", "number from 1 to 5"),
        ("ILSVRC2012_val_00000000.JPEG", "number from 1 to 5"),
        ("photo.JPEG", "photo.JPEG: expected a name with ILSVRC2012_val_"),
        ("ILSVRC2012_val_00000001.JPEG", "expected every image once, ILSVRC2012_val_00000001 is not"),
    ):
        image = image.rename(image.with_name(name))
        assert message in refused(path, open_source(str(tmp_path / "val")))
