"""Data sets with some of a model's classes, matched by name: ImageNet-A, ImageNet-R and ImageNette have ImageNet's."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.class_gaps import as_numbers, some
from deit_fast.data.sources.classes import comparable, match_classes
from deit_fast.runtime.errors import DataError

ClassChoice = Literal["data", "all"]
"""Whether a prediction is chosen among the data's classes alone, or among all classes of the model."""
CLASS_CHOICES: tuple[str, ...] = get_args(ClassChoice)


def choose_classes(
    source: Source, classes: Sequence[str], choice: ClassChoice | None, model: str
) -> NDArray[np.int64] | None:
    """The logits that take part when a model of K classes is scored on the source: int64 [k], by the source's classes.

    None means all K: the source then has the model's `classes` in their order (match_classes). Where the source has
    only some of the model's classes, by name or by number, `choice` says whether the other logits take part ("all") or
    not ("data"). model: whose `classes` these are, in words, for messages. Raises DataError where `choice` is missing,
    and for a class that the model lacks.
    """
    ours, theirs = comparable(source.classes, classes)
    if as_numbers(ours) is not None and as_numbers(theirs) is None:
        ours = list(map(str, as_numbers(ours) or ()))
        theirs = [str(label) for label in range(len(theirs))]  # class 7 of numbered folders is the model's class 7
    places = {name: place for place, name in enumerate(theirs)}
    unclear = source.counted or len(places) < len(theirs) or len(set(ours)) < len(ours)
    if unclear or len(ours) >= len(theirs) or not places.keys() >= set(ours):
        match_classes(source, list(classes), f"the classes of {model}")
        return None
    if choice is None:
        missing = some([name for name in theirs if name not in set(ours)])
        raise DataError(
            f"{source.uri}: has {len(ours)} of the {len(theirs)} classes of {model}, without {missing}; restore these "
            "if they were lost; --classes data chooses among those that are there, as for ImageNet-A and ImageNet-R, "
            "--classes all among all"
        )
    chosen = np.array([places[name] for name in ours], np.int64)
    if choice == "data":
        return chosen
    source.labels, source.classes = chosen[source.labels], list(classes)
    return None
