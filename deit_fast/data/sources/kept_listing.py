"""Listings kept in the cache folder: one process of a node lists a data set's folders, all later ones map the result.

A listing is valid while every folder that was walked, even one without images, and every file of labels is unchanged.
The listing notes the inode, times and size of each, which change when a file is added, removed or renamed. The times
include ctime, because tar and rsync set mtime back.

A folder that changed right before it was listed may change again within one tick of its file system's clock. Such a
listing serves the processes that waited for it, and no later process. The same holds for file systems that a program
mounts (FUSE), because the folders of object stores have no times.
"""

import hashlib
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import IMAGE_SUFFIXES
from deit_fast.data.sources.hidden import HIDDEN_FOLDERS
from deit_fast.data.sources.listing import Listing, Names
from deit_fast.runtime.errors import one_line
from deit_fast.runtime.files import cache_folder, exclusive
from deit_fast.runtime.mapped import read_arrays, read_content, write_arrays
from deit_fast.runtime.mounts import find_mount

_RULES = [1, *IMAGE_SUFFIXES, *sorted(HIDDEN_FOLDERS)]  # the first number changes when the rules of listing change
_TICKS_NS = 10**8, 2 * 10**9  # ten ticks of Linux's clock, and one tick of FAT, the coarsest
_LARGEST = 2**63 - 1
_LARGE = 10_000  # images; listing fewer again takes no noticeable time


@dataclass(frozen=True)
class Kept:
    """A listing, and the file in which it is kept."""

    listing: Listing
    path: Path
    """The listing's file. Files beside it with the same stem and another suffix hold more facts on the same images."""


class Watched:
    """The folders and files from which a listing is made, each with its state before it was read."""

    def __init__(self) -> None:
        self._states: dict[str, list[int]] = {}

    def add(self, path: str, status: os.stat_result) -> None:
        """path: relative to the data set's folder ("" is that folder itself), or absolute.

        status: os.stat's, taken before `path` was read.
        """
        self._states[path] = _state(status)

    @property
    def paths(self) -> Names:
        return Names.of(list(self._states))

    @property
    def states(self) -> NDArray[np.int64]:
        """int64 [paths, 4]: inode, mtime and ctime in ns, size."""
        return np.array(list(self._states.values()), np.int64)


def keep_listing(folder: Path, kind: str, make: Callable[[Watched], Listing]) -> Kept:
    """The listing of a data set in `folder`: the kept one, or else the result of `make`, which one process calls.

    kind: everything else that the listing depends on, in words. make: makes the listing, and notes in its argument all
    folders and files that it reads. Where the cache folder cannot be written, every process makes its own listing.
    Raises what `make` raises.
    """
    asked = time.time_ns()
    folder = Path(os.path.abspath(folder))
    mount = find_mount(folder)
    holder = mount.source if mount.is_shared else socket.gethostname()
    path = _folder() / f"{_short(holder)}-{_short(f'{folder} {kind}')}.listing"
    found = _read(path, folder, asked)
    if found is not None:
        return Kept(found, path)
    with ExitStack() as stack:
        failure = ""
        try:
            stack.enter_context(exclusive(path.with_name(f".{path.stem}-{os.getuid()}.lock")))
        except OSError as error:
            failure = one_line(error)
        found = None if failure else _read(path, folder, asked)  # another process may have made it meanwhile
        if found is not None:
            return Kept(found, path)
        watched, begun = Watched(), time.time_ns()
        made = make(watched)
        lasts = not mount.is_translated and _are_settled(watched.states[:, 2].tolist(), begun, mount.is_shared)
        content = {"folder": str(folder), "rules": _RULES, "begun": begun, "lasts": lasts, "classes": made.classes,
                   "digest": made.digest}  # fmt: skip
        paths = watched.paths
        arrays = {"watched": paths.text, "watched_ends": paths.ends, "states": watched.states}
        if not failure:
            try:
                if len(made) > _LARGE:
                    _remove_left_over(path)
                write_arrays(path, content, {**made.arrays(), **arrays})
                made = _read(path, folder, asked) or made  # maps the file, so that the processes share the memory
            except OSError as error:
                failure = one_line(error)
    if failure and len(made) > _LARGE:
        print(
            f"deit-fast: {path.parent}: expected to keep the list of the {len(made)} images of {folder} there "
            f"({failure}); every process lists them itself",
            file=sys.stderr,
        )
    return Kept(made, path)


def _folder() -> Path:
    return cache_folder() / "folders"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _state(status: os.stat_result) -> list[int]:
    values = status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
    return [value & _LARGEST for value in values]  # some file systems use all 64 bits


def _are_settled(times: list[int], begun: int, is_shared: bool) -> bool:
    """Whether a later change would get another time than the last one. times: of the last changes, ns.

    begun: the time at which listing began, ns. The greatest common divisor of all times shows the tick of the file
    system's clock. A server's clock may differ from this machine's: the longest tick is assumed then.
    """
    shortest, longest = _TICKS_NS
    tick = longest if is_shared else min(max(math.gcd(*times), shortest), longest)
    return max(times) < begun - tick


def _read(path: Path, folder: Path, asked: int) -> Listing | None:
    """The listing kept at `path` if it is whole and valid: it was begun after time `asked` (ns), or nothing changed.

    In a listing begun after `asked`, the data set's own folder alone is compared: inside another container the same
    path may be another folder.
    """
    try:
        content, arrays = read_arrays(path)
        if content["rules"] != _RULES or content["folder"] != str(folder):
            return None
        waited = content["begun"] >= asked
        count = 1 if waited else len(arrays["states"])
        paths = Names(arrays["watched"], arrays["watched_ends"])[:count]
        if not (waited or content["lasts"]) or not _are_unchanged(folder, paths, arrays["states"][:count].tolist()):
            return None
        return Listing.from_arrays(arrays, content["classes"], content["digest"])
    except (OSError, ValueError, KeyError, TypeError):  # missing, damaged, or of an earlier version
        return None


def _are_unchanged(folder: Path, paths: Iterable[str], states: Iterable[list[int]]) -> bool:
    """Whether all files and folders are as they were. Raises OSError for one that cannot be opened.

    Each path is opened, because an NFS client asks its server on opening, and otherwise answers from memory.
    """
    for path, state in zip(paths, states, strict=True):
        opened = os.open(os.path.join(folder, path), os.O_RDONLY | os.O_NONBLOCK)
        try:
            if _state(os.fstat(opened)) != state:
                return False
        finally:
            os.close(opened)
    return True


def _remove_left_over(path: Path) -> None:
    """Removes this machine's listings of folders that no longer exist, and partial files of killed processes."""
    holder = path.name.partition("-")[0]
    for each in path.parent.glob(f".{path.name}.*.tmp"):
        each.unlink(missing_ok=True)
    for each in path.parent.glob(f"{holder}-*.listing"):
        with suppress(OSError, ValueError, KeyError):
            if not os.path.exists(read_content(each)["folder"]):
                for part in (*each.parent.glob(f"{each.stem}*"), *each.parent.glob(f".{each.stem}*")):
                    part.unlink(missing_ok=True)
