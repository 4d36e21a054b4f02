"""Facts found out about a machine, kept for later starts: a JSON file in the cache folder, by key."""

import json
from pathlib import Path
from typing import Any

from deit_fast.runtime.files import write_json


def read_remembered(path: Path) -> dict[str, Any]:
    """The content of the file, by key; empty if there is no readable file."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def remember(path: Path, key: str, content: Any) -> None:
    """Adds the key's entry to the file, or replaces it; a damaged file is written anew.

    A file that cannot be written is no error: the next start finds the fact out again.
    """
    try:
        write_json(path, {**read_remembered(path), key: content})
    except OSError:
        return
