"""ImageNet-ReaL: several correct labels for every image of ImageNet's validation set (arXiv:2006.07159)."""

import json
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source
from deit_fast.runtime.errors import DataError, one_line

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.")


class RealLabels:
    """The labels of real.json: a list of class indices for each image, in the order of the images' numbers.

    The number of an image, from 1 on, is in its file's name. Raises DataError for a file of another form, for another
    number of images, for labels that are not the source's and for images without a number or with the same.
    """

    def __init__(self, path: Path, source: Source) -> None:
        lists = _read(path, len(source.classes))
        if len(lists) != len(source):
            raise DataError(
                f"{path}: expected labels for the {len(source)} images of {source.uri}, found {len(lists)} lists"
            )
        numbers = np.array([_image_number(source.name(index), len(lists)) for index in range(len(source))])
        unique, counts = np.unique(numbers, return_counts=True)
        if counts.max() > 1:
            raise DataError(
                f"{source.uri}: expected every image once, ILSVRC2012_val_{unique[counts.argmax()]:08} is not"
            )
        self._labels = [lists[number - 1] for number in numbers.tolist()]
        if not any(self._labels):
            raise DataError(f"{path}: expected labels, every list is empty")

    def scores(self, predictions: NDArray[np.int64]) -> dict[str, float]:
        """real_top1: percentage of `predictions` [N] among their image's labels; real_images: those that have labels.

        Images that the annotators left without a label do not count.
        """
        hits = [prediction in labels for prediction, labels in zip(predictions.tolist(), self._labels, strict=True)
                if labels]  # fmt: skip
        return {"real_top1": 100 * sum(hits) / len(hits), "real_images": len(hits)}


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
