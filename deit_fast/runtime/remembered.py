"""What was found out about a machine, kept for later starts: a JSON file of the cache folder, by key."""

import json
from pathlib import Path
from typing import Any

from deit_fast.runtime.files import write_json


def read_remembered(path: Path) -> dict[str, Any]:
    """The content of the file, by key; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def remember(path: Path, key: str, content: Any) -> None:
    """Adds an entry to the file, or replaces the key's; a damaged file is written anew.

    A file that cannot be written costs the next start another search, and is no error.
    """
    try:
        write_json(path, {**read_remembered(path), key: content})
    except OSError:
        return
