"""The differences of two recipes, value by value, as words that the command line takes."""

import json
from typing import Any, NamedTuple

from deit_fast.recipe.schema import SECTIONS, Recipe

_ABSENT = object()


class Difference(NamedTuple):
    """A key with different values, as words; None where one recipe has no such key."""

    key: str
    """section.key"""
    ours: str | None
    theirs: str | None


def differences(ours: Recipe, theirs: Recipe) -> list[Difference]:
    """The keys whose values differ, in the order of the sections."""
    found = []
    for section in SECTIONS:
        left, right = (getattr(each, section).model_dump(mode="json") for each in (ours, theirs))
        for key in dict.fromkeys([*left, *right]):
            if left.get(key, _ABSENT) != right.get(key, _ABSENT):
                words = [as_word(each[key]) if key in each else None for each in (left, right)]
                found.append(Difference(f"{section}.{key}", *words))
    return found


def as_word(value: Any) -> str:
    """A value in the form in which it follows the equals sign of an override."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
