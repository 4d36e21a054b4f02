"""Brace ranges: train-{0000..0009}.tar stands for ten names."""

import re

from deit_fast.runtime.errors import DataError

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def has_braces(uri: str) -> bool:
    """Whether the URI contains a range such as {0000..0009}."""
    return _BRACES.search(uri) is not None


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern with ranges such as {0000..0009} stands for, in order. Raises DataError."""
    names = [pattern]
    while match := _BRACES.search(names[0]):
        first, last = match.groups()
        if int(first) > int(last):
            raise DataError(f"{pattern}: expected a range that counts up, got {match[0]}")
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        names = [_BRACES.sub(number, name, count=1) for name in names for number in numbers]
    return names
