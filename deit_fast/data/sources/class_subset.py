"""Data with some of a model's classes, by name, as ImageNet-A, ImageNet-R and ImageNette have ImageNet's."""

import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.classes import are_numbers, check_same_classes
from deit_fast.runtime.errors import DataError

ClassChoice = Literal["data", "all"]
"""Among which classes a prediction is chosen: the data's, or all of the model's."""


class RelabelledSource(Source):
    """The images of another source, with labels in a longer list of classes."""

    def __init__(self, source: Source, classes: list[str], places: NDArray[np.int64]) -> None:
        """classes: the K names. places: int64 [k], the place among them of each class of `source`."""
        super().__init__(source.uri, classes, places[source.labels])
        self._source = source

    def read(self, index: int) -> NDArray[np.uint8]:
        return self._source.read(index)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def size(self, index: int, encoded: NDArray[np.uint8]) -> tuple[int, int]:
        return self._source.size(index, encoded)


def choose_classes(
    source: Source, classes: Sequence[str], choice: ClassChoice | None, model: str
) -> tuple[Source, NDArray[np.int64] | None]:
    """The source as a model with the K `classes` is scored on it, and the places [k] of the logits that take part.

    The places are None where they are all K, in their order. Classes that are numbers, on either side, are the others'
    by index. Otherwise names decide. The model's classes in another order are put into the source's. Of some of them
    `choice` says whether the others take part ("all") or not ("data"). Raises DataError without a choice, and for a
    class that is not the model's; `model` says in words whose `classes` are.
    """
    numbered = are_numbers(source.classes) or are_numbers(classes)
    places = {_plain(name): place for place, name in enumerate(classes)}
    found = [places.get(_plain(name)) for name in source.classes]
    if numbered or None in found or list(range(len(classes))) == found:
        check_same_classes(source, list(classes), f"the classes of {model}")
        return source, None
    chosen = np.array(found, np.int64)
    if len(found) < len(classes) and choice is None:
        raise DataError(
            f"{source.uri}: has {len(found)} of the {len(classes)} classes of {model}; --classes data chooses among "
            "these alone, as for ImageNet-A and ImageNet-R, --classes all among all"
        )
    if len(found) < len(classes) and choice == "all":
        return RelabelledSource(source, list(classes), chosen), None
    return source, chosen


def _plain(name: str) -> str:
    """The name in the one Unicode form, since file systems have both."""
    return unicodedata.normalize("NFC", name)
