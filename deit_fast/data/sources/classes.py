"""The classes of a data set: their names and order, and whether two lists of them are the same."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from deit_fast.data.sources.base import Source
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.patience import patiently


def order_classes(names: Iterable[str]) -> list[str]:
    """By name, as torchvision does it; names that are the numbers 0 to K - 1 by number, because they are the labels.

    The class folders of ImageNet-V2 are such: in the order of text, 10 would become class 2.
    """
    ordered = sorted(names)
    by_number = sorted(ordered, key=int) if all(_is_number(name) for name in ordered) else ordered
    return by_number if are_numbers(by_number) else ordered


def are_numbers(classes: Sequence[str]) -> bool:
    """Whether every name is the class's own index, 0 to K - 1: such names name nothing."""
    return all(_is_number(name) and int(name) == label for label, name in enumerate(classes))


def read_class_names(path: Path) -> list[str]:
    """The K names in a text file, one a line in the order of the labels 0 to K - 1. Raises DataError."""
    try:
        text = patiently(lambda: path.read_text(encoding="utf-8", errors="replace"), str(path))
    except OSError as error:
        raise DataError(f"{path}: expected the names of the classes ({error.strerror})") from None
    names = [line.strip() for line in text.rstrip().split("\n")]
    if "" in names:
        raise DataError(f"{path}: expected the name of a class in every line, line {names.index('') + 1} is empty")
    return names


def check_labels(path: Path, classes: list[str], largest_label: int) -> None:
    """Raises DataError where the file `path` names fewer classes than the labels need."""
    if largest_label >= len(classes):
        raise DataError(
            f"{path}: expected a name for each of at least {largest_label + 1} classes, found {len(classes)}"
        )


def resolve_classes(recipe: Recipe, source: Source) -> Recipe:
    """The recipe with the data's number of classes where it has model.num_classes=null.

    Raises DataError where the recipe has another number than the data.
    """
    found = len(source.classes)
    if recipe.model.num_classes is None:
        return recipe.derive(model={"num_classes": found})
    check_classes(source, recipe.model.num_classes)
    return recipe


def check_classes(source: Source, num_classes: int) -> None:
    """Raises DataError where the model's number of classes is not the data's."""
    if len(source.classes) != num_classes:
        found = len(source.classes)
        raise DataError(
            f"model.num_classes={num_classes}: {source.uri} has {found} classes; set model.num_classes={found}"
            + _hint(source)
        )


def check_same_classes(source: Source, classes: list[str], expected: str) -> None:
    """Raises DataError where the source's classes are others; `expected` says whose `classes` are, in words.

    Classes that are only numbered, on either side, are the others' by index.
    """
    if len(source.classes) != len(classes):
        raise DataError(
            f"{source.uri}: expected {expected}, {len(classes)} in number, found {len(source.classes)}{_hint(source)}"
        )
    if source.classes != classes and not are_numbers(source.classes) and not are_numbers(classes):
        theirs, found = next(pair for pair in zip(classes, source.classes, strict=True) if pair[0] != pair[1])
        raise DataError(f"{source.uri}: expected {expected}, found {found!r} in the place of {theirs!r}")


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _hint(source: Source) -> str:
    return ", or name all of them in classes.txt beside the shards" if source.counted else ""
