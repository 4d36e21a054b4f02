"""The files of fetched shards: whole ones, and beside them, hidden, what has arrived of those on their way.

They are at the places where `fetch` puts objects, so that their names hold the version. Who fetches a shard holds the
lock of its partial file, which becomes the whole one. What a killed process left of it is gone on with.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from deit_fast.runtime.files import try_exclusive
from deit_fast.runtime.object_store import Object, cached_place


class Kept(NamedTuple):
    """What the disk has of a shard."""

    bytes: int
    whole: bool
    changed_at: float
    """Seconds since 1970."""


class ShardFiles:
    """The files of a data set's shards on this machine; any process may add to them or remove some at any time."""

    def __init__(self, shards: Sequence[Object]) -> None:
        self.sizes = [each.size for each in shards]
        """Of the whole shards, bytes."""
        self._paths = [cached_place(each) for each in shards]
        self._folders: dict[Path, dict[str, int]] = {}
        for number, path in enumerate(self._paths):
            names = self._folders.setdefault(path.parent, {})
            names[path.name] = names[_partial(path).name] = number

    def kept(self) -> dict[int, Kept]:
        """What there is of which shard, as the folders are now. Raises OSError."""
        found: dict[int, Kept] = {}
        for folder, names in self._folders.items():
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
                for entry in entries:
                    number = names.get(entry.name)
                    if number is None:
                        continue
                    with suppress(FileNotFoundError):  # another process removed it
                        info = entry.stat()
                        whole = info.st_size == self.sizes[number] and entry.name == self._paths[number].name
                        if whole or number not in found:
                            found[number] = Kept(info.st_size, whole, info.st_mtime)
        return found

    def read(self, shard: int, start: int, size: int) -> bytes | None:
        """Bytes of a shard, from its file or from what has arrived of it; None where they are not here."""
        path = self._paths[shard]
        for place in (path, _partial(path)):
            try:
                descriptor = os.open(place, os.O_RDONLY)
            except OSError:  # whatever the disk has, the store has it too
                continue
            try:
                info = os.fstat(descriptor)
                if info.st_size >= start + size and (place is path or _is_of_this_boot(info)):
                    data = os.pread(descriptor, size, start)
                    if len(data) == size:
                        return data
            except OSError:
                continue
            finally:
                os.close(descriptor)
        return None

    def arrived(self, shard: int) -> int:
        """Bytes that have arrived of a shard on its way."""
        try:
            return _partial(self._paths[shard]).stat().st_size
        except OSError:
            return 0

    @contextmanager
    def fetching(self, shard: int) -> Iterator[BinaryIO | None]:
        """Holds the partial file of a shard, open for appending what it lacks, while the block runs.

        None where another process holds it, or the shard is here by now. An empty one is removed. Raises OSError.
        """
        path = self._paths[shard]
        partial = _partial(path)
        with try_exclusive(partial) as file:
            if file is None:
                yield None
                return
            try:
                if path.exists() and path.stat().st_size == self.sizes[shard]:
                    file.truncate(0)
                    yield None
                    return
                info = os.fstat(file.fileno())
                if info.st_size > self.sizes[shard] or not _is_of_this_boot(info):
                    file.truncate(0)
                yield file
            finally:
                with suppress(FileNotFoundError):
                    if not partial.stat().st_size:
                        partial.unlink()

    def finish(self, shard: int, file: BinaryIO) -> None:
        """Makes what was fetched, in the file of `fetching`, the shard, if it is whole. Raises OSError."""
        if os.fstat(file.fileno()).st_size == self.sizes[shard]:
            os.replace(_partial(self._paths[shard]), self._paths[shard])

    def evict(self, shard: int) -> bool:
        """Removes what there is of a shard, unless it is on its way. Whether nothing is left of it. Raises OSError."""
        partial = _partial(self._paths[shard])
        if partial.exists():
            with try_exclusive(partial) as file:
                if file is None:
                    return False
                partial.unlink()
        self._paths[shard].unlink(missing_ok=True)
        return True


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _is_of_this_boot(info: os.stat_result) -> bool:
    """Whether a file that was not synced was written since the machine started: a power cut may leave zeros in it."""
    return info.st_mtime >= time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
