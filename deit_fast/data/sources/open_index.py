"""The index of local shards, found beside them or in the cache folder; else one process makes it while others wait.

A shard's headers are read where the index lacks the shard or has another size or modification time for it; of the other
shards at most 8 headers in all. A damaged shard is not indexed, and its earlier entry stays in the index.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deit_fast.data.sources.base import read_all
from deit_fast.data.sources.merge_shards import Part, merge_parts
from deit_fast.data.sources.samples import MAX_CLASSES
from deit_fast.data.sources.shard_index import (
    FILE_VERSION,
    ShardEntry,
    ShardIndex,
    digest_rows,
    read_index,
    write_index,
)
from deit_fast.data.sources.shard_listing import Listing, list_samples
from deit_fast.data.sources.splits import split_of_shard
from deit_fast.data.sources.tar_reader import BLOCK, TarReader, is_header
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.files import cache_folder, exclusive
from deit_fast.runtime.patience import patiently
from deit_fast.runtime.progress import progress

_THREADS = 8
_STATS = 64  # number of files whose times one thread reads
_SPOT_CHECKS = 8


class FoundShards(NamedTuple):
    """The facts known about shards, in their order."""

    whole: ShardIndex | None
    """The index of all of them; None where some are damaged."""
    parts: list[Part | Listing]
    """Samples and faults of each shard where there is no index: of a damaged shard, those that could be read."""
    before: dict[int, Part]
    """By the number of a damaged shard: its entry in an index from before the damage."""


class _Place(NamedTuple):
    folder: Path
    stem: str

    def read(self) -> ShardIndex | None:
        """The index at this place; None where there is none that is sound. Raises StorageError."""
        path = self.folder / f"{self.stem}.index.json"
        try:
            return patiently(lambda: read_index(path.read_bytes(), path.with_suffix(".npy")), str(path))
        except (OSError, ValueError):
            return None


def open_index(shards: Sequence[Path], classes: list[str]) -> ShardIndex:
    """The index of these shards, in their order; it is made or brought up to date where necessary.

    classes: the names in a classes.txt beside the first shard, [] without such a file. Raises DataError, one line, for
    a shard that is not whole or not made of images with labels, StorageError where the storage fails.
    """
    found = find_shards(shards, classes)
    if found.whole is not None:
        return found.whole
    number, damaged = next((n, part) for n, part in enumerate(found.parts) if isinstance(part, Listing))
    raise DataError(f"{shards[number]}: expected {damaged.refusal()}")


def find_shards(shards: Sequence[Path], classes: list[str]) -> FoundShards:
    """Like `open_index`, but keeps the whole samples of damaged shards. Raises DataError, StorageError."""
    return _Opening(shards, classes).find()


def read_shard(shard: Path, classes: Sequence[str] = (), limit: int = MAX_CLASSES) -> tuple[Listing, os.stat_result]:
    """The samples of a local shard by its headers, and the file's state when it was read.

    classes: names that labels may have. limit: labels from this number on are faults. Raises DataError where the shard
    cannot be read, StorageError where the storage fails.
    """
    label_of = {name: label for label, name in enumerate(classes)}

    def read() -> tuple[Listing, os.stat_result]:
        descriptor = os.open(shard, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            reader = TarReader(lambda offset, size: read_all(descriptor, size, offset), status.st_size)
            return list_samples(reader, limit, label_of), status
        finally:
            os.close(descriptor)

    try:
        return patiently(read, str(shard))
    except OSError as error:
        if error.errno is None:
            raise
        raise DataError(f"{shard}: expected a readable .tar shard ({error.strerror or error})") from None


def known_parts(shards: Sequence[Path], classes: list[str]) -> tuple[dict[int, Part], str]:
    """Entries in existing indexes for these shards in their present state, by number; and the stem of the .json."""
    opening = _Opening(shards, classes)
    known = opening.known()
    found = {number: known[name] for number, name in enumerate(opening.names) if name in known}
    same = {number: part for number, part in found.items() if part.entry[1:3] == opening.states[number]}
    return same, f"{opening.places[0].stem}.index.json"


def file_version(status: os.stat_result) -> str:
    """`ShardEntry.version` for a local file."""
    return f"{FILE_VERSION}{status.st_mtime_ns}"


def make_part(name: str, listing: Listing, size: int, version: str) -> Part:
    """The index entry of a sound shard of `size` bytes."""
    rows, folders = listing.rows()
    return Part(ShardEntry(name, size, version, len(rows), digest_rows(rows)), rows, folders, listing.by_name)


class _Opening:
    def __init__(self, shards: Sequence[Path], classes: list[str]) -> None:
        self.shards, self.classes = shards, classes
        folders = sorted({str(shard.parent.absolute()) for shard in shards})
        self.names = [shard.name if len(folders) == 1 else str(shard.absolute()) for shard in shards]
        stem = split_of_shard(shards[0].name) or "shards"
        key = hashlib.sha256("\n".join(folders).encode(errors="surrogateescape")).hexdigest()[:16]
        self.places = [_Place(cache_folder(), f"{stem}-{key}")]
        if len(folders) == 1:
            self.places.insert(0, _Place(shards[0].parent, stem))
        self.states = _states(shards)

    def find(self) -> FoundShards:
        index = self._first_that_fits()
        if index is not None:
            return FoundShards(index, [], {})
        made, reason = None, ""
        for place in filter(_writable, self.places):
            try:
                with exclusive(place.folder / f".{place.stem}.index.lock"):
                    if made is None and (index := self._first_that_fits()) is not None:
                        return FoundShards(index, [], {})
                    made = made or self._make()
                    found, stored = made
                    if stored is None:
                        return found
                    write_index(stored, place.folder, place.stem)
                    written = place.read()
                    mapped = found.whole is not None and written is not None and self._fits(written)
                    return found._replace(whole=written.take(self.names)) if written and mapped else found
            except OSError as error:
                reason = f" ({error.strerror or error})"
        found, stored = made or self._make()
        if stored is not None and os.environ.get("LOCAL_RANK", "0") == "0":
            folders = " nor to ".join(str(place.folder) for place in self.places)
            print(
                f"deit-fast: {self.shards[0]}: the index of the shards can be written neither to {folders}{reason}; "
                "each process makes it at each start",
                file=sys.stderr,
            )
        return found

    def _first_that_fits(self) -> ShardIndex | None:
        for place in self.places:
            index = place.read()
            if index is not None and self._fits(index):
                return index.take(self.names)
        return None

    def _fits(self, index: ShardIndex) -> bool:
        """Whether the index belongs to these shards in their present state, and to their classes."""
        if index.classes != self.classes if index.named else self.classes:
            return False
        there = {entry.name: (entry.bytes, entry.version) for entry in index.shards}
        same = all(there.get(name) == state for name, state in zip(self.names, self.states, strict=True))
        return same and self._looks_right(index)

    def _looks_right(self, index: ShardIndex) -> bool:
        """Whether the last image's header of at most 8 shards is at the offset that the index says."""
        path_of = dict(zip(self.names, self.shards, strict=True))
        state_of = dict(zip(self.names, self.states, strict=True))
        numbers = [
            number
            for number, entry in enumerate(index.shards)
            if entry.images and state_of.get(entry.name) == (entry.bytes, entry.version)
        ]
        places = np.linspace(0, len(numbers) - 1, min(len(numbers), _SPOT_CHECKS)).astype(int)
        for number in {numbers[place] for place in places.tolist()}:
            offset, size, _ = index.rows_of(number)[-1].tolist()
            path = path_of[index.shards[number].name]
            if not is_header(_read_header(path, (offset - 1) * BLOCK), size):
                return False
        return True

    def _make(self) -> tuple[FoundShards, ShardIndex | None]:
        """The facts found, and the index to write, or None if it has nothing new."""
        known = self.known()
        state_of = dict(zip(self.names, self.states, strict=True))
        parts: dict[str, Part | Listing] = {
            name: known[name]
            for name in self.names
            if name in known and (known[name].entry.bytes, known[name].entry.version) == state_of[name]
        }
        stale = [(name, shard) for name, shard in zip(self.names, self.shards, strict=True) if name not in parts]
        new = False
        with ThreadPoolExecutor(_THREADS) as pool:
            reading = pool.map(lambda each: read_shard(each[1], self.classes), stale)
            for (name, _), (listing, status) in zip(
                stale, progress(reading, len(stale), "index shards") if stale else (), strict=True
            ):
                sound = listing.refusal() is None
                parts[name] = make_part(name, listing, status.st_size, file_version(status)) if sound else listing
                new = new or sound
        asked = [parts[name] for name in self.names]
        sound_parts = {name: part for name, part in parts.items() if isinstance(part, Part)}
        before = {number: known[name] for number, name in enumerate(self.names) if name in known}
        before = {number: part for number, part in before.items() if isinstance(asked[number], Listing)}
        stored = self._merge_all(known | sound_parts, sound_parts) if new or not before else None
        index = None
        if len(sound_parts) == len(parts):
            ordered = [sound_parts[name] for name in self.names]
            index = merge_parts(ordered, list(map(str, self.shards)), self.classes)
        return FoundShards(index, asked, before), stored

    def known(self) -> dict[str, Part]:
        """Entries in existing indexes of all shards in the folder that still exist."""
        known: dict[str, Part] = {}
        for place in reversed(self.places):
            index = place.read()
            by_name = index is not None and index.kind == "names"
            if index is None or (by_name and index.classes != self.classes) or not self._looks_right(index):
                continue
            folders = tuple(index.classes) if index.kind == "folders" else ()
            for number, entry in enumerate(index.shards):
                if (self.shards[0].parent / entry.name).exists():
                    known[entry.name] = Part(entry, index.rows_of(number), folders, by_name)
        return known

    def _merge_all(self, every: dict[str, Part], asked: dict[str, Part]) -> ShardIndex | None:
        """All parts in the order of their names, or else the parts that fit together: none has to be read again."""
        for parts, classes in ((every, self.classes), (asked, self.classes), (asked, [])):
            names = sorted(parts)
            if not names:
                return None
            try:
                return merge_parts([parts[name] for name in names], names, classes)
            except DataError:
                continue
        return None


def _states(shards: Sequence[Path]) -> list[tuple[int, str]]:
    """Size in bytes and version of each file."""

    def state(shard: Path) -> tuple[int, str]:
        try:
            status = patiently(lambda: os.stat(shard), str(shard))
        except OSError as error:
            raise DataError(f"{shard}: expected a readable .tar shard ({error.strerror or error})") from None
        return status.st_size, file_version(status)

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = [shards[start : start + _STATS] for start in range(0, len(shards), _STATS)]
        return [each for part in pool.map(lambda part: [state(shard) for shard in part], parts) for each in part]


def _read_header(shard: Path, offset: int) -> bytes:
    """The block at byte `offset`; empty where the shard is unreadable: reading it whole gives the better message."""

    def read() -> bytes:
        descriptor = os.open(shard, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.pread(descriptor, BLOCK, offset)
        finally:
            os.close(descriptor)

    try:
        return patiently(read, str(shard))
    except (OSError, OverflowError):
        return b""


def _writable(place: _Place) -> bool:
    """Whether a file can be made there. A folder without any write bit counts as read-only, even for root."""
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
        return os.access(place.folder, os.W_OK) and bool(place.folder.stat().st_mode & 0o222)
    except OSError:
        return False
