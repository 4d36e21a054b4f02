"""What stages leave behind: JSON files, on storage that is here or in an object store, which say that they are done."""

import json
import os
from pathlib import Path
from typing import Any

from deit_fast.runtime.errors import RunError
from deit_fast.runtime.object_store import is_remote, modified_at, read_object


def written_at(place: str) -> float | None:
    """When the file at a path or URI was written, seconds since 1970; None where none is to be seen, or none is named.

    Raises RunError where a store cannot be asked.
    """
    if not place:
        return None
    if is_remote(place):
        return modified_at(place)
    try:
        return os.stat(place).st_mtime
    except OSError:
        return None


def read_result(place: str) -> dict[str, Any]:
    """The content of the JSON file at a path or URI; empty where it is not readable from this machine."""
    try:
        content = json.loads(read_object(place) if is_remote(place) else Path(place).read_bytes())
    except (OSError, ValueError, RunError):
        return {}
    return content if isinstance(content, dict) else {}
