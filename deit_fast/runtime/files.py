"""Files that are written atomically, and folders that one process locks."""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from deit_fast.runtime.errors import RunError, StorageError
from deit_fast.runtime.exit_status import ExitStatus, status_of

_HELD = {errno.EWOULDBLOCK, errno.EACCES}  # flock's errors if another process holds the lock
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on success it is synced to disk and renamed to `path`.

    An OSError of the temporary file, or without a file name, as for a full disk, is raised with the name of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, mode)  # as the user's umask says; safetensors makes its files private
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)  # so that the rename survives a power cut
    except OSError as error:
        if error.filename in (None, str(temporary)) and error.errno is not None:
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Waits until the folder's list of names is on the disk. Raises OSError."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def lacking_space(folder: Path, needed: int = 0) -> str:
    """The missing space on a full disk, in words; "" where the folder's disk has more than `needed` bytes free."""
    try:
        place = folder.resolve()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        while not os.path.ismount(place):
            place = place.parent
    except OSError:  # a disk that is gone is not full
        return ""
    if free >= max(needed, 1 << 16):
        return ""
    lacking = f", {needed - free} bytes too few" if needed > free else ""
    return f"the disk at {place} has {free} bytes free{lacking}"


def cache_folder() -> Path:
    """$DEIT_FAST_CACHE, or deit_fast in $XDG_CACHE_HOME or ~/.cache; without a home folder, in the temporary folder.

    The folder need not exist.
    """
    own = os.environ.get("DEIT_FAST_CACHE")
    if own:
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deit_fast"
    except RuntimeError:  # a container's user may have no entry and no home
        return Path(tempfile.gettempdir()) / f"deit_fast-{os.getuid()}"


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the lock file `path` while the block runs; waits until no other process or thread holds it.

    The lock file is created. If the file system has no locks, only the processes of this machine exclude each other.
    Raises OSError where the file cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file, _flock(file, path, fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def try_exclusive(path: Path) -> Iterator[BinaryIO | None]:
    """Holds the lock of the file `path` while the block runs: gives the file, open for appending, created if missing.

    Gives None, without waiting, if another process or thread holds the lock or has just renamed or removed the file.
    The file is unbuffered. Raises OSError where the file cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file, contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_flock(file, path, fcntl.LOCK_EX | fcntl.LOCK_NB))
            is_there = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except OSError as error:
            if error.errno not in (*_HELD, errno.ENOENT):
                raise
            is_there = False
        yield file if is_there else None


def hash_file(path: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Writes plain data in the form of `json_text`.

    Raises OSError where the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json_text(content) + "\n", encoding="utf-8")


def json_text(content: Any, indent: int | None = 2) -> str:
    """Plain data as JSON, in the form that every command prints and every file has: non-finite numbers become null.

    Python's json would write NaN and Infinity, which are not JSON: jq, browsers and other languages refuse them.
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
    """Makes the folder and holds a lock on its file `name`, which other processes respect; it ends with the process.

    A folder that was created here and stays empty, as when a run is refused, is removed again. If the file system has
    no locks, a line says that only processes of this machine are excluded. Raises RunError where the folder cannot be
    written, or where another process (`holder`, in words) has the lock; StorageError where the file system fails.
    """
    existed = folder.exists()
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / name, "w"))
            missing = stack.enter_context(_flock(file, folder / name, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in _HELD and error.filename is None:  # raised by flock, as it names no file
                raise RunError(f"{folder}: {holder} is at work there") from None
            kind = RunError if status_of(error) is ExitStatus.REFUSED else StorageError
            raise kind(f"{folder}: expected a folder that can be written ({error.strerror})") from None
        if missing:
            print(
                f"deit-fast: {folder}: its file system has no locks ({missing}), so that {holder} is kept out on this "
                "machine alone",
                file=sys.stderr,
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if not existed and os.listdir(folder) == [name]:
                    (folder / name).unlink()
                    folder.rmdir()


@contextlib.contextmanager
def _flock(file: IO[Any], path: Path, operation: int) -> Iterator[str]:
    """Holds the lock on `file`, which is open at `path`, while the block runs.

    Yields "", or the reason why the file system has no locks; Lustre and NFS can be mounted without them. A file in
    this machine's temporary folder is then locked instead, if possible. Raises flock's other OSErrors.
    """
    with contextlib.ExitStack() as stack:
        try:
            fcntl.flock(file, operation)
            missing = ""
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            missing = str(error.strerror)
            _lock_here(path, operation, stack)
        yield missing


def _lock_here(path: Path, operation: int, stack: contextlib.ExitStack) -> None:
    """Locks the file in this machine's temporary folder that stands for `path`, if possible, until the stack ends."""
    own = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"deit_fast-{os.getuid()}-{own}.lock"
    try:
        number = os.open(place, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        stack.callback(os.close, number)
        fcntl.flock(number, operation)
    except OSError as error:
        if error.errno in _HELD and error.filename is None:
            raise
