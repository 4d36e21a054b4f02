"""What a checkpoint says in words beside its tensors, such as recipe and class names. Held to be small."""

import json
from typing import Any

from deit_fast.convert.formats.lazy_tensor import BadFileError

JSON_LIMIT = 4_000_000
"""Bytes of JSON that are read; the names of 21,843 classes are a tenth of it."""
_VALUES_LIMIT = 100_000


def parse_json(content: str | bytes) -> Any:
    """Plain data from JSON. Raises BadFileError for more than 4 MB of it, and as `check_plain`.

    What is no JSON raises ValueError, and too deep a nesting RecursionError.
    """
    if len(content) > JSON_LIMIT:
        raise BadFileError(f"has more than {JSON_LIMIT} bytes of JSON: expected a few thousand")
    return check_plain(json.loads(content))


def check_plain(value: Any) -> Any:
    """`value` itself. Raises BadFileError where it is not plain data, or holds more than 100,000 values.

    A pickle can hold a list many times over in itself, which to print or to validate would take forever.
    """
    waiting, seen = [value], 0
    while waiting:
        each = waiting.pop()
        seen += 1
        if isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple):
            waiting += each
        elif not isinstance(each, str | int | float | None):
            raise BadFileError(f"describes itself with a {type(each).__name__}: expected plain data")
        if seen + len(waiting) > _VALUES_LIMIT:
            raise BadFileError(f"describes itself with more than {_VALUES_LIMIT} values")
    return value


def check_names(classes: Any) -> list[str] | None:
    """The names of classes, or None. Raises BadFileError for anything else."""
    if classes is None:
        return None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise BadFileError("has class names of another kind: expected a list of texts")
    return classes
