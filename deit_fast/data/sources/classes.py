"""The classes of a data set: their names and order, and whether two lists of them are the same."""

import codecs
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from deit_fast.data.sources.base import Source
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.patience import patiently

_ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_SHOWN = 5


def order_classes(names: Iterable[str]) -> list[str]:
    """The names in torchvision's order, by name; names that are the numbers 0 to K - 1 are ordered by number.

    Such numbers are the labels themselves. ImageNet-V2 has class folders with these names: in the order of text, the
    folder 10 would become class 2.
    """
    ordered = sorted(names)
    by_number = sorted(ordered, key=int) if all(_is_number(name) for name in ordered) else ordered
    return by_number if are_numbers(by_number) else ordered


def are_numbers(classes: Sequence[str]) -> bool:
    """Whether the names are the class indices 0 to K - 1, which say nothing about the classes."""
    return all(_is_number(name) and int(name) == label for label, name in enumerate(classes))


def read_class_names(path: Path) -> list[str]:
    """The K names in a text file, one a line in the order of the labels 0 to K - 1. Raises DataError."""
    lines = read_text(path, "the names of the classes").rstrip().split("\n")
    names = [line.strip() for line in lines]
    if "" in names:
        raise DataError(f"{path}: expected the name of a class in every line, line {names.index('') + 1} is empty")
    return names


def read_text(path: Path, expected: str) -> str:
    """A text file's content as precomposed characters (NFC), decoded as its byte order mark says, without one as UTF-8.

    expected: the content that was expected, for the message. Raises DataError.
    """
    try:
        data = patiently(path.read_bytes, str(path))
    except OSError as error:
        raise DataError(f"{path}: expected {expected} ({error.strerror})") from None
    encoding = next((name for mark, name in _ENCODINGS.items() if data.startswith(mark)), "utf-8")
    return unicodedata.normalize("NFC", data.decode(encoding, errors="replace"))


def check_labels(path: str | Path, classes: list[str], largest_label: int) -> None:
    """Raises DataError where the file `path` names fewer classes than the labels need."""
    if largest_label >= len(classes):
        raise DataError(
            f"{path}: expected a name for each of at least {largest_label + 1} classes, found {len(classes)}"
        )


def resolve_classes(recipe: Recipe, source: Source) -> Recipe:
    """The recipe with the data's number of classes in the place of model.num_classes=null.

    Raises DataError where the recipe sets another number than the data have.
    """
    found = len(source.classes)
    if recipe.model.num_classes is None:
        return recipe.derive(model={"num_classes": found})
    check_classes(source, recipe.model.num_classes)
    return recipe


def check_classes(source: Source, num_classes: int) -> None:
    """Raises DataError where the model's number of classes differs from the data's."""
    if len(source.classes) != num_classes:
        found = len(source.classes)
        raise DataError(
            f"model.num_classes={num_classes}: {source.uri} has {found} classes; set model.num_classes={found}"
            + _hint(source)
        )


def match_classes(source: Source, classes: list[str], expected: str) -> None:
    """Reorders the source's classes, and changes its labels, to the order of `classes`.

    expected: whose `classes` these are, in words, for messages. Names are compared in one form of Unicode, because file
    systems keep different forms. If the classes of one side are only numbers, class i is the other side's class i. If
    both sides have the same names, the names decide even where they are numbers, because a list of numbers may be in
    the order of text. Raises DataError where the source has other classes.
    """
    ours, theirs = one_form(source.classes), one_form(classes)
    if ours == theirs:
        return
    found = f"{source.uri}: expected {expected}"
    same_names = not source.counted and set(ours) == set(theirs)
    if (are_numbers(ours) or are_numbers(theirs)) and not same_names:
        if len(ours) != len(theirs):
            raise DataError(f"{found}, {len(theirs)} in number, found {len(ours)}{_hint(source)}")
        return
    label_of = {name: label for label, name in enumerate(theirs)}
    missing, more = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
    if len(ours) == len(theirs) and (missing or more):
        lacking, other = next(pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1])
        single = [lacking] == missing and [other] == more
        raise DataError(
            f"{found}, found {other!r} in the place of {lacking!r}" + ("" if single else _differences(missing, more))
        )
    if missing or more:
        raise DataError(f"{found}, {len(theirs)} in number, found {len(ours)}" + _differences(missing, more))
    if len(label_of) < len(theirs) or len(set(ours)) < len(ours):
        raise DataError(f"{found} in their order, found another order, and a name that several classes have")
    source.labels = np.array([label_of[name] for name in ours])[source.labels]
    source.classes = classes


def one_form(names: Sequence[str]) -> list[str]:
    """The names as precomposed characters (NFC): macOS stores ü as u and a combining diaeresis, others as one."""
    return [unicodedata.normalize("NFC", name) for name in names]


def _differences(missing: list[str], more: list[str]) -> str:
    told = [f"{word} {_some(names)}" for word, names in (("lacks", missing), ("has besides", more)) if names]
    return f"; it {' and '.join(told)}"


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _hint(source: Source) -> str:
    return ", or name all of them in classes.txt beside the shards" if source.counted else ""
