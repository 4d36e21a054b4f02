"""The parts that trackers share: the run's id at each tracker, and the recipe's values as hyperparameters."""

import contextlib
import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deit_fast.runtime.errors import one_line
from deit_fast.runtime.files import write_json

TRACKERS = "trackers.json"


def kept_id(folder: Path, tracker: str, make: Callable[[], str]) -> str:
    """The id of the run in `folder` at a tracker: an earlier start's, else a new one, which is kept. Raises OSError."""
    path = folder / TRACKERS
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        known = {}
    if tracker not in known:
        write_json(path, {**known, tracker: make()})
        return kept_id(folder, tracker, make)
    return str(known[tracker])


@contextlib.contextmanager
def tolerated(*kinds: type[Exception]) -> Iterator[None]:
    """Raises a tracker's own errors as OSError, which costs a run a line: a server that is gone must not end a run."""
    try:
        yield
    except kinds as error:
        raise OSError(errno.EIO, one_line(error)[:200]) from None


def read_hyperparameters(folder: Path) -> dict[str, Any]:
    """The values of recipe.json by section.key: numbers, texts and booleans; lists as JSON."""
    try:
        recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    plain = {
        f"{section}.{key}": value if isinstance(value, int | float | str) else json.dumps(value)
        for section, values in recipe.items() if isinstance(values, dict) for key, value in values.items()
    }  # fmt: skip
    return {"recipe": recipe.get("name", ""), **plain}
