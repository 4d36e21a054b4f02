"""The classes of a data set: their names and order, and whether two lists of them are the same."""

import codecs
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.class_gaps import as_numbers, is_number, lacking, some
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.patience import patiently

_ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def order_classes(names: Iterable[str]) -> list[str]:
    """The names in torchvision's order, by name; names that are the numbers 0 to K - 1 are ordered by number.

    Such numbers are the labels themselves. ImageNet-V2 has class folders with these names: in the order of text, the
    folder 10 would become class 2.
    """
    ordered = sorted(names)
    by_number = sorted(ordered, key=int) if all(is_number(name) for name in ordered) else ordered
    return by_number if are_numbers(by_number) else ordered


def are_numbers(classes: Sequence[str]) -> bool:
    """Whether the names are the class indices 0 to K - 1, which say nothing about the classes."""
    return all(is_number(name) and int(name) == label for label, name in enumerate(classes))


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
        missing = lacking(source.classes, num_classes)
        lost = f", without {some(missing)}: restore these if they were lost" if missing and not source.counted else ""
        raise DataError(
            f"model.num_classes={num_classes}: {source.uri} has {found} classes{lost}; set model.num_classes={found}"
            + _hint(source)
        )


def match_classes(source: Source, classes: list[str], expected: str) -> None:
    """Reorders the source's classes, and changes its labels, to the order of `classes`.

    expected: whose `classes` these are, in words, for messages. Names are compared in one form of Unicode, because file
    systems keep different forms. If the classes of one side are the numbers 0 to K - 1, and those of the other side are
    names, class i is the other side's class i. If both sides have numbers, the numbers decide, because a list of
    numbers may be in the order of text, and because a folder may be missing. Raises DataError where the source has
    other classes.
    """
    ours, theirs = comparable(source.classes, classes)
    if ours == theirs:
        return
    found = f"{source.uri}: expected {expected}"
    by_name = not source.counted and (set(ours) == set(theirs) or bool(as_numbers(ours) and as_numbers(theirs)))
    if (are_numbers(ours) or are_numbers(theirs)) and not by_name:
        if len(ours) != len(theirs):
            raise DataError(f"{found}, {len(theirs)} in number, found {len(ours)}{_hint(source)}")
        return
    label_of = {name: label for label, name in enumerate(theirs)}
    missing, more = (sorted(each, key=_by_number) for each in (set(theirs) - set(ours), set(ours) - set(theirs)))
    if len(ours) == len(theirs) and (missing or more):
        absent, other = next(pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1])
        if as_numbers(ours) and as_numbers(theirs):  # which may be in the order of text
            absent, other = missing[0], more[0]
        single = [absent] == missing and [other] == more
        raise DataError(
            f"{found}, found {other!r} in the place of {absent!r}" + ("" if single else _differences(missing, more))
        )
    if missing or more:
        raise DataError(f"{found}, {len(theirs)} in number, found {len(ours)}" + _differences(missing, more))
    if len(label_of) < len(theirs) or len(set(ours)) < len(ours):
        raise DataError(f"{found} in their order, found another order, and a name that several classes have")
    source.labels = np.array([label_of[name] for name in ours])[source.labels]
    source.classes = classes


def comparable(ours: Sequence[str], theirs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Two lists of classes as they are compared: in one form of Unicode, and if both are numbers with 7 for 007."""
    if (numbers := as_numbers(ours)) is not None and (others := as_numbers(theirs)) is not None:
        return list(map(str, numbers)), list(map(str, others))
    return one_form(ours), one_form(theirs)


def one_form(names: Sequence[str]) -> list[str]:
    """The names as precomposed characters (NFC): macOS stores ü as u and a combining diaeresis, others as one."""
    return [unicodedata.normalize("NFC", name) for name in names]


def _differences(missing: list[str], more: list[str]) -> str:
    told = [f"{word} {some(names)}" for word, names in (("lacks", missing), ("has besides", more)) if names]
    return f"; it {' and '.join(told)}"


def _by_number(name: str) -> tuple[int, str]:
    return (int(name) if is_number(name) else -1), name


def _hint(source: Source) -> str:
    return ", or name all of them in classes.txt beside the shards" if source.counted else ""
