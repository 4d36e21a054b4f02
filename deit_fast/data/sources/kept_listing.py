"""Listings kept in the cache folder: one process of a node lists a data set's folders, all later ones map the result.

A listing holds as long as all that it was made of does: every folder that was walked, those without images too, and the
files of labels. Each has its number on the disk, its times and its size noted, which a file that comes, goes or gets
another name changes. The time of the last change of state (ctime) is among them, for tar and rsync set the other one
back. A folder that changed right before it was listed may change again within one tick of its file system's clock: its
listing serves the processes that waited for it, and no later one. The same goes for what a program mounts (FUSE), as
the folders of object stores have no times.
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

_RULES = [1, *IMAGE_SUFFIXES, *sorted(HIDDEN_FOLDERS)]  # the number changes when listings are made otherwise
_TICKS_NS = 10**8, 2 * 10**9  # ten of Linux's, and one of FAT, the coarsest
_LARGEST = 2**63 - 1
_LARGE = 10_000  # images; of fewer, listing them again is nothing to speak of


@dataclass(frozen=True)
class Kept:
    """A listing, and the file that it is kept in."""

    listing: Listing
    path: Path
    """Others beside it, of the same name and another suffix, hold what is known of the same images."""


class Watched:
    """What a listing is made of: folders and files, each with its state before it was read."""

    def __init__(self) -> None:
        self._states: dict[str, list[int]] = {}

    def add(self, path: str, status: os.stat_result) -> None:
        """`path`: in the data set's folder, "" for itself, or absolute. status: os.stat's, before it was read."""
        self._states[path] = _state(status)

    @property
    def paths(self) -> Names:
        return Names.of(list(self._states))

    @property
    def states(self) -> NDArray[np.int64]:
        """[paths, 4]."""
        return np.array(list(self._states.values()), np.int64)


def keep_listing(folder: Path, kind: str, make: Callable[[Watched], Listing]) -> Kept:
    """The listing of a data set in `folder`: the one kept, or what `make` makes, one process at a time.

    kind: what it depends on besides the folder, in words. make: has the listing made, and notes in its argument all
    that it was made of. Where the cache folder cannot be written, every process makes its own. Raises what `make` does.
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
        found = None if failure else _read(path, folder, asked)  # another process made it meanwhile
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
                made = _read(path, folder, asked) or made  # mapped, so that its memory is shared
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
    return [value & _LARGEST for value in values]  # some file systems number with all 64 bits


def _are_settled(times: list[int], begun: int, is_shared: bool) -> bool:
    """Whether what changed last at these times (ns) would have another time if it changed after a later one, `begun`.

    The file system's tick is what all times are multiples of. A server's clock may be another one: the longest, then.
    """
    shortest, longest = _TICKS_NS
    tick = longest if is_shared else min(max(math.gcd(*times), shortest), longest)
    return max(times) < begun - tick


def _read(path: Path, folder: Path, asked: int) -> Listing | None:
    """The listing kept at `path`, if it is whole and holds: it was begun after a time (ns), or nothing changed.

    Of one that was begun after that the data set's own folder is looked at, which is another one in another container.
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
    except (OSError, ValueError, KeyError, TypeError):  # none there, or damaged, or of an earlier version
        return None


def _are_unchanged(folder: Path, paths: Iterable[str], states: Iterable[list[int]]) -> bool:
    """Whether all files and folders are as they were. Raises OSError for one that cannot be opened.

    Each is opened, as a client of NFS asks its server then alone, and answers from memory otherwise.
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
    """Removes, of this machine's listings, those of folders that are gone, and what killed processes began to write."""
    holder = path.name.partition("-")[0]
    for each in path.parent.glob(f".{path.name}.*.tmp"):
        each.unlink(missing_ok=True)
    for each in path.parent.glob(f"{holder}-*.listing"):
        with suppress(OSError, ValueError, KeyError):
            if not os.path.exists(read_content(each)["folder"]):
                for part in (*each.parent.glob(f"{each.stem}*"), *each.parent.glob(f".{each.stem}*")):
                    part.unlink(missing_ok=True)
