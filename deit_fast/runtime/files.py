"""Files that are written whole or not at all, and folders held by one process."""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deit_fast.runtime.errors import RunError


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to, synced to disk and renamed over it when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, mode)  # the user's umask decides who may read it; safetensors makes its files private
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)  # the rename itself has to survive a power cut
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """$DEIT_FAST_CACHE, or deit_fast in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("DEIT_FAST_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deit_fast"


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the lock file `path`, which is made, while the block runs: waits until no other process or thread holds it.

    Raises OSError where the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def hash_file(path: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Writes plain data as `json_text` has it.

    Raises OSError where the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json_text(content) + "\n", encoding="utf-8")


def json_text(content: Any, indent: int | None = 2) -> str:
    """Plain data as JSON, as every command prints it and every file has it: what is not finite is null.

    NaN and Infinity are no JSON, though Python's json writes them, and jq, browsers and other languages refuse them.
    """
    return json.dumps(finite(content), indent=indent, allow_nan=False)


def finite(content: Any) -> Any:
    """Plain data with null in the place of NaN and infinities."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextlib.contextmanager
def locked(folder: Path, name: str, holder: str) -> Iterator[None]:
    """Makes the folder and keeps other processes out by a lock on its file `name`; it ends with the process.

    A folder that was made and stays empty, as where a run is refused, is removed again.
    Raises RunError where the folder cannot be written, or where another process, `holder` in words, has the lock.
    """
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / name, "w")  # noqa: SIM115 (closing it is what releases the lock)
    except OSError as error:
        raise RunError(f"{folder}: expected a folder that can be written ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder}: {holder} is at work there") from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if not existed and os.listdir(folder) == [name]:
                    (folder / name).unlink()
                    folder.rmdir()
