"""Fetches objects to this machine, once for all its processes; interrupted transfers continue where they stopped."""

import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deit_fast.runtime.errors import RunError, StorageError
from deit_fast.runtime.exit_status import ExitStatus, status_of
from deit_fast.runtime.files import cache_folder, exclusive, lacking_space, sync_folder
from deit_fast.runtime.object_store.listing import find_object
from deit_fast.runtime.object_store.reads import stream_object
from deit_fast.runtime.object_store.uris import ChangedError, Object, is_remote, without_query
from deit_fast.runtime.progress import Progress, progress

_FETCHES = 16  # fetches at once, because one connection does not use a network's full bandwidth


def local_place(uri: str) -> Path:
    """The folder of this URI on this machine: the cache folder, followed by the URI's parts.

    Raises RunError for a URI with "..".
    """
    scheme, _, path = without_query(uri).partition("://")
    parts = [part for part in path.split("/") if part]
    if ".." in parts:
        raise RunError(f"{uri}: expected a URI without '..'")
    return cache_folder().joinpath(scheme, *parts)


def cached_place(wanted: Object) -> Path:
    """The path at which `fetch` puts the object by default."""
    place = local_place(wanted.uri)
    return place.with_name(f"{place.stem}@{_key(wanted)}{place.suffix}")


def partial_place(wanted: Object, path: Path) -> Path:
    """The path of the object's incomplete content until `path` has it whole; each version has its own."""
    return path.with_name(f".{path.name}.{_key(wanted)}.part")


def _download(wanted: Object, path: Path, shown: str | None) -> None:
    """Completes the file at `path`, whose present content is the object's beginning from a broken transfer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        if file.tell() > wanted.size:
            file.truncate(0)
        start = file.tell()
        if lacking := lacking_space(path.parent, wanted.size - start):
            raise RunError(f"{path.parent}: expected room for the {wanted.size} bytes of {wanted.name}: {lacking}")
        with Progress(wanted.size, f"fetch {shown}", start, unit="B", show=shown is not None) as bar:
            for piece in stream_object(wanted, start):
                file.write(piece)
                bar.update(len(piece))
        file.flush()
        os.fsync(file.fileno())
        if (found := file.tell()) != wanted.size:  # two machines wrote, on a file system without locks
            raise ChangedError(f"{path}: expected {wanted.size} bytes, found {found}; run again")


def fetch(
    wanted: Object,
    path: Path | None = None,
    shown: str | None = None,
    accept: Callable[[Path], object] | None = None,
) -> Path:
    """A file with the object's content, fetched if this machine does not have it; several processes fetch it once.

    path: by default a path that contains the version, so that a changed object does not replace a file that another
    process is still reading. shown: the name on a progress bar; None shows no bar. accept: called with the fetched file
    before it becomes the file at `path`; if it raises, the fetched file is removed and the error is passed on. Raises
    RunError, also for a disk that is too small.
    """
    path = path or cached_place(wanted)
    if _is_here(wanted, path):  # the folder may be read-only
        return path
    try:
        with exclusive(path.with_name(f".{path.name}.lock")):
            if not _is_here(wanted, path):
                partial = partial_place(wanted, path)
                for left in path.parent.glob(f".{path.name}.*.part"):
                    if left != partial:
                        left.unlink()
                try:
                    _download(wanted, partial, shown)
                except (OSError, ChangedError):  # a full disk or another object: the partial file is useless
                    partial.unlink(missing_ok=True)
                    raise
                try:
                    if accept is not None:
                        accept(partial)
                except Exception:
                    partial.unlink(missing_ok=True)
                    raise
                os.replace(partial, path)
                sync_folder(path.parent)
    except OSError as error:
        kind = RunError if status_of(error) is ExitStatus.REFUSED else StorageError
        raise kind(f"{path}: cannot be written ({error.strerror or error})") from None
    return path


def fetch_all(wanted: list[Object], what: str) -> list[Path]:
    """Fetches all objects, many at a time, after checking that there is room for all.

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
    finally:  # an error or an interrupt does not wait for the other objects
        pool.shutdown(wait=False, cancel_futures=True)


def fetch_file(path: str | Path) -> Path:
    """The path itself, or for a URI the file with its content. Raises RunError."""
    return fetch(find_object(str(path))) if is_remote(path) else Path(path)


def _is_here(wanted: Object, path: Path) -> bool:
    return path.is_file() and path.stat().st_size == wanted.size


def _key(wanted: Object) -> str:
    query = wanted.uri.removeprefix(without_query(wanted.uri))
    return hashlib.sha256(f"{wanted.version} {wanted.size}{query}".encode()).hexdigest()[:12]
