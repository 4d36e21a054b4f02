"""Objects in stores, by URI (s3://, gs://, file://): listed, fetched once for this machine, written, copied.

fsspec does the talking, so credentials and endpoints are those of s3fs and gcsfs: AWS_ENDPOINT_URL, ~/.aws and so on.
"""

import errno
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from deit_fast.runtime.errors import RunError, StorageError, one_line
from deit_fast.runtime.files import atomic_path, cache_folder, exclusive
from deit_fast.runtime.patience import Pause
from deit_fast.runtime.progress import progress

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "file": "fsspec"}
_FETCHES = 16  # at once: one connection does not fill a network
_TRIES = 8  # about a minute in all
_WAIT_SECONDS = 0.5  # after the first failure; twice as long after each further one. s3fs and gcsfs retry too
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}

Result = TypeVar("Result")


class Object(NamedTuple):
    """An object as a store lists it."""

    uri: str
    size: int
    """Bytes."""
    version: str
    """Another one whenever the content is: the store's ETag, or a file's time."""

    @property
    def name(self) -> str:
        """The last part of its URI."""
        return self.uri.rpartition("/")[2]


def is_remote(uri: object) -> bool:
    """Whether it is a URI with a scheme rather than a path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(uri)) is not None


def local_place(uri: str) -> Path:
    """Where things of this URI are kept on this machine: the cache folder, then the URI's parts.

    Raises RunError for a URI with "..".
    """
    scheme, _, path = uri.partition("://")
    parts = [part for part in path.split("/") if part]
    if ".." in parts:
        raise RunError(f"{uri}: expected a URI without '..'")
    return cache_folder().joinpath(scheme, *parts)


def find_object(uri: str) -> Object:
    """The object at a URI. Raises RunError, one line, where there is none or the store does not show it."""
    info = _attempt(uri, lambda: _connect(uri).info(uri))
    if info["type"] != "file":
        raise RunError(f"{uri}: expected an object, found a folder")
    return Object(uri, info["size"], _version(info))


def is_folder(uri: str) -> bool:
    """Whether a folder is at a URI, and no object. Raises RunError where there is neither."""
    return _attempt(uri, lambda: _connect(uri).info(uri))["type"] != "file"


def list_objects(uri: str) -> tuple[set[str], list[Object]]:
    """Names of the folders in a folder, and its objects in the order of their names; both empty where there is none.

    Raises RunError where the store or the bucket cannot be asked.
    """
    folder = uri.rstrip("/")
    try:
        found = _attempt(folder, lambda: _connect(folder).ls(folder, detail=True))
    except _MissingError:
        scheme, _, path = folder.partition("://")
        if scheme != "file":
            bucket = f"{scheme}://{path.partition('/')[0]}"
            _attempt(bucket, lambda: _connect(bucket).info(bucket))
        return set(), []
    names = {info["name"].rstrip("/").rpartition("/")[2]: info for info in found}
    objects = [
        Object(f"{folder}/{name}", info["size"], _version(info))
        for name, info in sorted(names.items())
        if info["type"] == "file" and name
    ]
    return {name for name, info in names.items() if info["type"] == "directory"}, objects


def cached_place(wanted: Object) -> Path:
    """Where `fetch` puts the object on this machine by default."""
    place = local_place(wanted.uri)
    version = hashlib.sha256(f"{wanted.version} {wanted.size}".encode()).hexdigest()[:12]
    return place.with_name(f"{place.stem}@{version}{place.suffix}")


def fetch(wanted: Object, path: Path | None = None) -> Path:
    """A file with the object's content, fetched where this machine does not have it; once for several processes.

    path: by default a place whose name holds the version, so that a changed object takes no file from under a process
    that still reads the old one. Raises RunError.
    """
    path = path or cached_place(wanted)
    try:
        with exclusive(path.with_name(f".{path.name}.lock")):
            if not _is_here(wanted, path):
                for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a process killed on the way
                    left.unlink()
                with atomic_path(path) as temporary:
                    _attempt(wanted.uri, lambda: _download(wanted, temporary))
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None
    return path


def fetch_all(wanted: list[Object], what: str) -> list[Path]:
    """`fetch` of each object, many at a time, once there is room for all.

    what: the objects in words, for messages. Raises RunError, also where the disk is too small.
    """
    missing = sum(each.size for each in wanted if not _is_here(each, cached_place(each)))
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if missing > (free := shutil.disk_usage(folder).free):
        raise RunError(f"{folder}: expected {missing / 2**30:.1f} GiB free for {what}, found {free / 2**30:.1f}")
    pool = ThreadPoolExecutor(_FETCHES)
    try:
        return list(progress(pool.map(fetch, wanted), len(wanted), f"fetch {what}"))
    finally:  # an error or an interrupt does not wait for the rest
        pool.shutdown(wait=False, cancel_futures=True)


def fetch_file(path: str | Path) -> Path:
    """The path itself, or of a URI the file with its content. Raises RunError."""
    return fetch(find_object(str(path))) if is_remote(path) else Path(path)


def read_object(uri: str) -> bytes:
    """The object's content. Raises RunError."""
    return _attempt(uri, lambda: _connect(uri).cat_file(uri))


def read_range(uri: str, start: int, size: int, version: str, pause: Pause | None = None) -> bytes:
    """`size` bytes of the object from byte `start` on, of this version of it.

    version: as an Object or an index has it. pause: as of `patiently`, true to give up at once. Raises ChangedError
    where the object is another one now, or gone; StorageError where the store goes on failing; else RunError.
    """
    return _attempt(uri, lambda: _connect(uri).cat_file(uri, start=start, end=start + size))


def stream_object(wanted: Object, start: int = 0, pause: Pause | None = None) -> Iterator[bytes]:
    """The object's content from byte `start` on, in pieces, going on at the byte reached where a transfer breaks.

    pause and errors: as of `read_range`.
    """
    while start < wanted.size:
        yield read_range(wanted.uri, start, size := min(1 << 20, wanted.size - start), wanted.version, pause)
        start += size


def download(wanted: Object, path: Path, pause: Pause | None = None) -> None:
    """Makes the file at `path` the object's content; what is there already is its beginning, of a transfer that broke.

    No lock is taken: the caller has one. pause and errors: as of `read_range`. Raises also the disk's OSErrors.
    """
    have = path.stat().st_size if path.exists() else 0
    with open(path, "ab") as file:
        for piece in stream_object(wanted, have, pause):
            file.write(piece)


def write_object(uri: str, content: Path | bytes) -> None:
    """Stores a file, or bytes, whole or not at all (but for file://). Raises RunError."""

    def write() -> None:
        system = _connect(uri)
        if isinstance(content, bytes):
            system.pipe_file(uri, content)
            return
        system.put_file(str(content), uri)
        if (stored := system.info(uri)["size"]) != content.stat().st_size:
            raise OSError(f"{stored} bytes arrived of {content.stat().st_size}")

    _attempt(uri, write)


def copy_object(source: str, destination: str) -> None:
    """Copies an object within its store. Raises RunError."""
    _attempt(destination, lambda: _connect(source).cp_file(source, destination))


def remove_object(uri: str) -> None:
    """Removes an object, unless it is gone already. Raises RunError where the store does not let it."""
    try:
        _attempt(uri, lambda: _connect(uri).rm_file(uri))
    except _MissingError:
        return


class ChangedError(RunError):
    """The object in the store is another one than was listed, or is gone."""


class _MissingError(RunError):
    """There is no such object."""


def _is_here(wanted: Object, path: Path) -> bool:
    return path.is_file() and path.stat().st_size == wanted.size


def _connect(uri: str) -> Any:
    scheme = uri.partition("://")[0]
    if scheme not in _PACKAGES:
        raise RunError(f"{uri}: expected a path, s3://, gs:// or file://")
    try:
        import fsspec

        options = {"auto_mkdir": True} if scheme == "file" else {}
        return fsspec.filesystem(scheme, use_listings_cache=False, **options)
    except ImportError:
        package = _PACKAGES[scheme]
        raise RunError(f"{uri}: expected {package}, not installed: pip install 'deit_fast[cloud]'") from None


def _download(wanted: Object, path: Path) -> None:
    system = _connect(wanted.uri)
    system.get_file(wanted.uri, str(path))
    if (size := path.stat().st_size) != wanted.size:
        raise OSError(f"{size} bytes arrived of {wanted.size}")
    if _version(system.info(wanted.uri)) != wanted.version:
        raise RunError(f"{wanted.uri}: it changed while it was fetched; run again")


def _version(info: dict[str, Any]) -> str:
    return str(next((info[key] for key in ("ETag", "etag", "mtime") if info.get(key)), ""))


def _attempt(uri: str, action: Callable[[], Result]) -> Result:
    """The action's result; failures that may pass are tried again.

    Raises RunError, one line that names the URI: StorageError where the store goes on failing.
    """
    for wait in [_WAIT_SECONDS * 2**number for number in range(_TRIES - 1)] + [None]:
        try:
            return action()
        except RunError:
            raise
        except FileNotFoundError:
            raise _MissingError(f"{uri}: no such object or bucket") from None
        except PermissionError as error:
            raise RunError(f"{uri}: access denied ({one_line(error)})") from None
        except Exception as error:  # botocore, aiohttp and google-auth raise what they like
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise
            if "Credential" in type(error).__name__:
                raise RunError(f"{uri}: expected credentials for the store ({one_line(error)})") from None
            if wait is None:
                reason = one_line(error)[:300] or type(error).__name__
                raise StorageError(f"{uri}: cannot be reached after {_TRIES} attempts ({reason})") from None
            time.sleep(wait)
    raise AssertionError
