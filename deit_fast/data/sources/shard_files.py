"""The files of fetched shards: whole shards, and hidden beside them the partial files of shards on their way.

The files lie where `fetch` puts objects, so their names hold the objects' versions. The process that fetches a shard
holds the lock of its partial file, which becomes the whole file. A partial file of a killed process is continued.
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
    """A shard's state on the disk."""

    bytes: int
    whole: bool
    changed_at: float
    """Time of the last change, seconds since 1970."""


class ShardFiles:
    """The files of a data set's shards on this machine; any process may add or remove shards at any time."""

    def __init__(self, shards: Sequence[Object]) -> None:
        self.sizes = [each.size for each in shards]
        """Bytes of each whole shard."""
        self._paths = [cached_place(each) for each in shards]
        self._folders: dict[Path, dict[str, int]] = {}
        for number, path in enumerate(self._paths):
            names = self._folders.setdefault(path.parent, {})
            names[path.name] = names[_partial(path).name] = number

    def kept(self) -> dict[int, Kept]:
        """The shards in the folders at this moment, by number. Raises OSError."""
        found: dict[int, Kept] = {}
        for folder, names in self._folders.items():
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
                for entry in entries:
                    number = names.get(entry.name)
                    if number is None:
                        continue
                    with suppress(FileNotFoundError):  # another process may have removed it
                        info = entry.stat()
                        whole = info.st_size == self.sizes[number] and entry.name == self._paths[number].name
                        if whole or number not in found:
                            found[number] = Kept(info.st_size, whole, info.st_mtime)
        return found

    def read(self, shard: int, start: int, size: int) -> bytes | None:
        """Bytes of a shard, from its whole or its partial file; None where they are not on the disk."""
        path = self._paths[shard]
        for place in (path, _partial(path)):
            try:
                descriptor = os.open(place, os.O_RDONLY)
            except OSError:  # the store has every byte, so a failing disk is no error here
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
        """Holds the lock of a shard's partial file while the block runs; the file is open for appending.

        Gives None where another process holds the lock, or where the shard is whole by now. A partial file that is
        empty at the end is removed. Raises OSError.
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
        """Turns a partial file from `fetching` into the whole shard, if it has all bytes. Raises OSError."""
        if os.fstat(file.fileno()).st_size == self.sizes[shard]:
            os.replace(_partial(self._paths[shard]), self._paths[shard])

    def evict(self, shard: int) -> bool:
        """Removes a shard's files unless it is being fetched. Returns whether none of it is left. Raises OSError."""
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
    """Whether an unsynced file was written since the machine booted; a power cut may leave zeros in older ones."""
    return info.st_mtime >= time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
