"""`Subset`: some images of a data set as a data set of its own, for example its training or validation images."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.headers import Header
from deit_fast.data.sources.identity import Identity
from deit_fast.data.sources.lazy_names import LazyNames


class Subset(Source):
    """The images `kept` of a source, int64 [n] in ascending order, with the source's classes, shards and places.

    A source that fetches shards is told which of them are read next, so two subsets need a copy of the source each
    (copy.copy).
    """

    def __init__(self, source: Source, kept: NDArray[np.int64]) -> None:
        super().__init__(source.uri, source.classes, source.labels[kept])
        self.place, self.counted, self.readers = source.place, source.counted, source.readers
        if source.shard_edges is not None:
            self.shard_edges = np.searchsorted(kept, source.shard_edges)
            self.shard_bytes = source.shard_bytes
        self.kept = kept.astype(np.uint32)
        self._source = source

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as stored, uint8 [bytes]. Raises what the source does."""
        return self._source.read(int(self.kept[index]))

    def header(self, index: int, encoded: NDArray[np.uint8]) -> Header:
        return self._source.header(int(self.kept[index]), encoded)

    def name(self, index: int) -> str:
        return self._source.name(int(self.kept[index]))

    def stored_in(self, index: int) -> str:
        return self._source.stored_in(int(self.kept[index]))

    def expect(self, shards: NDArray[np.int64], protected: int) -> None:
        self._source.expect(shards, protected)

    def limit_cache(self, limit: int | None) -> int | None:
        return self._source.limit_cache(limit)

    def relative_names(self) -> Sequence[str]:
        return self._pick(self._source.relative_names())

    def listed_names(self) -> Sequence[str]:
        return self._pick(self._source.listed_names())

    def identity(self) -> Identity | None:
        return self._source.identity_of(self.kept.astype(np.int64), self.labels, self.classes)

    def fingerprints(self, images: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        kept = self.kept if images is None else self.kept[images]
        return self._source.fingerprints(kept.astype(np.int64))

    def _pick(self, names: Sequence[str]) -> Sequence[str]:
        return LazyNames(len(self), lambda index: names[int(self.kept[index])])

    def outline(self) -> str:
        """A digest of the source's outline and of the indices of the kept images."""
        own = f"{self._source.outline()} {super().outline()} {hashlib.sha256(self.kept.data).hexdigest()}"
        return hashlib.sha256(own.encode()).hexdigest()
