"""Encoded images kept in memory, so that each is read from its disk or file system once."""

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.headers import Header
from deit_fast.data.sources.identity import Identity

_ENTRY_BYTES = 256  # overhead of an array, its bytes object and its place in the table


def keep_in_memory(source: Source, gib: float) -> Source:
    """`source` with a cache of `gib` GiB in this process; `source` itself if `gib` is 0."""
    return CachedSource(source, int(gib * 2**30)) if gib else source


class CachedSource(Source):
    """A source whose images stay in this process's memory once they were read, up to `limit` bytes.

    Images are never evicted: each epoch has a new random order, in which the least recently used images come soonest.
    Once the limit is reached, images outside the cache are read anew each time.
    """

    def __init__(self, source: Source, limit: int) -> None:
        super().__init__(source.uri, source.classes, source.labels)
        self.counted, self.shard_edges, self.readers = source.counted, source.shard_edges, source.readers
        self._source, self._left = source, limit
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as stored, uint8 [bytes], from memory or else from the source. Raises what the source does."""
        found = self._kept.get(index)
        if found is not None:
            return found
        data = self._source.read(index)
        size = data.nbytes + _ENTRY_BYTES
        with self._lock:  # another thread may have read the same image meanwhile
            if index not in self._kept and size <= self._left:
                self._kept[index] = data
                self._left -= size
        return data

    def header(self, index: int, encoded: NDArray[np.uint8]) -> Header:
        return self._source.header(index, encoded)

    def expect(self, shards: NDArray[np.int64], protected: int) -> None:
        self._source.expect(shards, protected)

    def relative_names(self) -> Sequence[str]:
        return self._source.relative_names()

    def identity(self) -> Identity | None:
        return self._source.identity()

    def fingerprints(self, images: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        return self._source.fingerprints(images)

    def stored_in(self, index: int) -> str:
        return self._source.stored_in(index)

    def name(self, index: int) -> str:
        return self._source.name(index)
