"""Data with some of a model's classes, by name, as ImageNet-A, ImageNet-R and ImageNette have ImageNet's."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.classes import are_numbers, match_classes, one_form
from deit_fast.runtime.errors import DataError

ClassChoice = Literal["data", "all"]
"""Among which classes a prediction is chosen: the data's, or all of the model's."""
CLASS_CHOICES: tuple[str, ...] = get_args(ClassChoice)


def choose_classes(
    source: Source, classes: Sequence[str], choice: ClassChoice | None, model: str
) -> NDArray[np.int64] | None:
    """Which of a model's K logits take part when it is scored on the source: places int64 [k] in the source's order.

    None where all K do; the source has the model's `classes` then, in their order (match_classes). Where the source has
    some of them by name, `choice` says whether the others take part ("all") or not ("data"). Raises DataError without a
    choice, and for a class that is not the model's; `model` says in words whose `classes` are.
    """
    ours, theirs = one_form(source.classes), one_form(classes)
    places = {name: place for place, name in enumerate(theirs)}
    numbered = are_numbers(ours) or are_numbers(theirs)
    unclear = len(places) < len(theirs) or len(set(ours)) < len(ours)
    if numbered or unclear or len(ours) >= len(theirs) or not places.keys() >= set(ours):
        match_classes(source, list(classes), f"the classes of {model}")
        return None
    if choice is None:
        raise DataError(
            f"{source.uri}: has {len(ours)} of the {len(theirs)} classes of {model}; --classes data chooses among "
            "these alone, as for ImageNet-A and ImageNet-R, --classes all among all"
        )
    chosen = np.array([places[name] for name in ours], np.int64)
    if choice == "data":
        return chosen
    source.labels, source.classes = chosen[source.labels], list(classes)
    return None
