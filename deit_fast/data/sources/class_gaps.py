"""Classes that a data set seems to lack: numbers between its numbered folders, ImageNet's ids, classes without images.

An incomplete copy looks like a data set of fewer classes. A line names the missing ones, because nothing else would.
"""

from collections.abc import Sequence

import numpy as np

from deit_fast.data.sources.base import Source
from deit_fast.zoo.class_names import IMAGENETS, imagenet_classes, is_wordnet_id

_SHOWN = 5
_IMAGENET = 1000


def is_number(name: str) -> bool:
    """Whether a name consists of the digits 0 to 9."""
    return name.isascii() and name.isdigit()


def as_numbers(classes: Sequence[str]) -> list[int] | None:
    """The numbers that the names are; None where a name is no number, or where two names are the same number."""
    if not all(is_number(name) for name in classes):
        return None
    numbers = [int(name) for name in classes]
    return numbers if len(set(numbers)) == len(numbers) else None


def lacking(classes: Sequence[str], count: int) -> list[str]:
    """The classes that are missing in `classes`, where these are part of a known list of `count` classes; else none.

    Such lists are the numbers 0 to count - 1, and ImageNet's WordNet ids.
    """
    numbers = as_numbers(classes)
    if numbers is not None:
        ours, whole = set(map(str, numbers)), [str(number) for number in range(count)]
    elif count in IMAGENETS and all(is_wordnet_id(name) for name in classes):
        ours, whole = set(classes), list(imagenet_classes(count))
    else:
        return []
    return [name for name in whole if name not in ours] if ours < set(whole) else []


def describe_gaps(source: Source) -> list[str]:
    """Lines about classes that training images seem to lack; empty for a data set that looks complete.

    Only a data set that has most classes counts as incomplete: a chosen part of ImageNet, such as ImageNette, and ids
    with large gaps are meant so.
    """
    lines, classes, numbers = [], source.classes, as_numbers(source.classes)
    empty = np.flatnonzero(np.bincount(source.labels, minlength=len(classes)) == 0).tolist()
    if empty:
        names = some([classes[label] for label in empty])
        lines.append(f"{source.place}: no images of {len(empty)} of its {len(classes):,} classes: {names}")
    if numbers and 0 < len(gaps := set(range(min(numbers), max(numbers))) - set(numbers)) < len(numbers):
        names = some([str(number) for number in sorted(gaps)])
        lines.append(
            f"{source.place}: numbered classes, without {names}: so a class is not its number, but its place in the "
            "order of text; restore these if they were lost"
        )
    if len(classes) < _IMAGENET and all(map(is_wordnet_id, classes)):
        missing = lacking(classes, _IMAGENET)
        if 0 < len(missing) < len(classes):
            lines.append(
                f"{source.place}: has {len(classes)} of ImageNet's {_IMAGENET:,} classes, without {some(missing)}; "
                "restore these if they were lost"
            )
    return lines


def some(names: Sequence[str]) -> str:
    """The first names in quotes, and the number of the others."""
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
