"""Text in a checkpoint beside its tensors, such as recipe and class names; limited to a small size."""

import json
from typing import Any

from deit_fast.convert.formats.lazy_tensor import BadFileError

JSON_LIMIT = 4_000_000
"""Most bytes of JSON that are read; the names of 21,843 classes take a tenth of this."""
_VALUES_LIMIT = 100_000


def parse_json(content: str | bytes) -> Any:
    """Plain data from JSON. Raises BadFileError for more than 4 MB, and as `check_plain` does.

    Raises ValueError for invalid JSON, and RecursionError for too deep nesting.
    """
    if len(content) > JSON_LIMIT:
        raise BadFileError(f"has more than {JSON_LIMIT} bytes of JSON: expected a few thousand")
    return check_plain(json.loads(content))


def check_plain(value: Any) -> Any:
    """`value` itself. Raises BadFileError where it is not plain data, or holds more than 100,000 values.

    A pickle can contain one list many times in itself; printing or validating such a list would take forever.
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
    """The class names, or None. Raises BadFileError for anything else."""
    if classes is None:
        return None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise BadFileError("has class names of another kind: expected a list of texts")
    return classes
