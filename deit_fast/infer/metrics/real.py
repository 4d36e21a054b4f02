"""ImageNet-ReaL: several correct labels for every image of ImageNet's validation set (arXiv:2006.07159)."""

import json
import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deit_fast.data.sources.base import Source
from deit_fast.infer.metrics import Metric, Predicted, Totals
from deit_fast.runtime.errors import DataError, one_line
from deit_fast.runtime.world import to_device

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.")


def build_metric(file: str, source: Source) -> Metric:
    """Top-1 by the labels of real.json: a list of class indices for each image, in the order of the images' numbers.

    real_top1: among the images that have labels, the percentage whose prediction is one of their labels. real_images:
    the number of images that have labels. An image's number, from 1 on, is in its file's name. Raises DataError for a
    file of another form, for another number of images, for labels that the source lacks, and for images without a
    number or with the same number.
    """
    labels = _pad(_labels_of(Path(file), source))

    def count_hits(seen: Predicted) -> Tensor:
        """[2]: images whose prediction is one of their labels, and images that have labels."""
        rows = to_device(labels[seen.indices], seen.logits.device)
        hits = (rows == seen.most_likely[1][:, None]) & seen.finite[:, None]  # rows are padded with -1
        return torch.stack([hits.any(dim=1).sum(), (rows[:, 0] >= 0).sum()])

    def accuracy(totals: Totals, images: int) -> dict[str, float]:
        hits, labelled = totals.astype(int).tolist()
        return {"real_top1": 100 * hits / labelled, "real_images": labelled}

    return Metric(count_hits, accuracy)


def _labels_of(path: Path, source: Source) -> list[list[int]]:
    """The lists of labels in the source's order."""
    lists = _read(path, len(source.classes))
    if len(lists) != len(source):
        raise DataError(
            f"{path}: expected labels for the {len(source)} images of {source.uri}, found {len(lists)} lists"
        )
    numbers = np.array([_image_number(source.name(index), len(lists)) for index in range(len(source))])
    unique, counts = np.unique(numbers, return_counts=True)
    if counts.max() > 1:
        raise DataError(f"{source.uri}: expected every image once, ILSVRC2012_val_{unique[counts.argmax()]:08} is not")
    if not any(lists):
        raise DataError(f"{path}: expected labels, every list is empty")
    return [lists[number - 1] for number in numbers.tolist()]


def _pad(lists: list[list[int]]) -> NDArray[np.int64]:
    """[images, n]: each image's labels, padded with -1 to the largest number of labels."""
    padded = np.full((len(lists), max(map(len, lists))), -1)
    for row, labels in zip(padded, lists, strict=True):
        row[: len(labels)] = labels
    return padded


def _read(path: Path, num_classes: int) -> list[list[int]]:
    try:
        lists = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a readable list of lists of labels ({one_line(error)})") from None
    if not isinstance(lists, list) or not all(isinstance(labels, list) for labels in lists):
        raise DataError(f"{path}: expected a list with a list of labels for every image")
    for labels in lists:
        for label in labels:
            if type(label) is not int or not 0 <= label < num_classes:
                raise DataError(f"{path}: expected labels from 0 to {num_classes - 1}, found {label!r}")
    return lists


def _image_number(name: str, images: int) -> int:
    match = _NUMBER.search(name)
    if match is None or not 1 <= int(match[1]) <= images:
        raise DataError(
            f"{name}: expected a name with ILSVRC2012_val_ and a number from 1 to {images}, which ReaL labels go by"
        )
    return int(match[1])
