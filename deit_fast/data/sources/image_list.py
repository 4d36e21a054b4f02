"""A list of images of a data set, such as the held-out images that a training writes to RUN/val.json.

    {"data": "/data/photos", "labels": null, "category": "name", "fraction": 0.1, "seed": 0, "images": ["cat/1.jpg"]}

The list names images as `Source.listed_names` does. It can stand in the place of a data set: --data RUN/val.json opens
these images of that data set.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.held_out import find_listed
from deit_fast.data.sources.place import split_place
from deit_fast.data.sources.subset import Subset
from deit_fast.runtime.errors import DataError, one_line, printable
from deit_fast.runtime.object_store import is_remote, read_object, without_query

LIST_NAME = "val.json"
"""File name of the list in a run folder."""


@dataclass(frozen=True)
class ImageList:
    """Images of a data set by name, and how they were chosen."""

    data: str
    """Path from the root, or URI, of the data set."""
    labels: str | None
    """The data set's file of labels, if it was given (--labels)."""
    category: str
    """The level of the data set's taxonomy (data.category)."""
    fraction: float
    """Fraction of each class that was held out."""
    seed: int
    """Seed of the choice."""
    images: list[str]
    """Names of the images, in the data set's order."""

    @property
    def choice(self) -> dict[str, float | int]:
        """The settings of the choice, named as in a recipe's section `data`."""
        return {"val_fraction": self.fraction, "val_seed": self.seed}

    def as_text(self) -> str:
        """The list as a file's text, which `read` takes."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, place: str) -> Self:
        """The list in the file at a path or URI. Raises DataError where it is no list, OSError, MissingError."""
        text = read_object(place) if is_remote(place) else Path(place).read_bytes()
        try:
            found = cls(**json.loads(text))
            words = (found.data, found.category, found.labels or "", *found.images)
            types = {str: words, float: (found.fraction,), int: (found.seed,)}
            if not all(type(value) is kind for kind, values in types.items() for value in values):
                raise TypeError("a value of another type")
            if not 0 < found.fraction < 1:
                raise ValueError(f"fraction={found.fraction:g}")
        except (ValueError, TypeError, RecursionError) as error:
            expected = f"expected a list of images as a run writes it ({one_line(error)[:100]})"
            raise DataError(f"{without_query(place)}: {expected}") from None
        return found

    def open(self, open_source: Callable[..., Source], place: str) -> Source:
        """Opens the listed images of the data set that the list names.

        Raises DataError where some are missing, where the list is empty, and where the data set is elsewhere now.
        """
        if not self.images:
            raise DataError(f"{place}: lists no images, since no class of {self.data} had two; expected --data")
        try:
            whole = open_source(self.data, "train", self.category, labels=self.labels)
        except DataError as error:
            raise DataError(f"{error}; {place} names that place, and --data names another") from None
        images, missing = find_listed(whole, self.images)
        if missing:
            raise DataError(
                f"{place}: expected its {len(self.images)} images in {self.data}, {len(missing)} are not there, "
                f"{printable(missing[0])} first"
            )
        listed = Subset(whole, images)
        listed.uri = listed.place = place
        return listed


def is_list(place: str) -> bool:
    """Whether the name of a place is that of a list of images."""
    return split_place(place)[1] == LIST_NAME
