"""`IndexedShards`: images in tar shards whose offsets an index knows. Subclasses read the bytes."""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.identity import Identity, identify_rows
from deit_fast.data.sources.lazy_names import LazyNames
from deit_fast.data.sources.place import split_place
from deit_fast.data.sources.shard_index import LARGEST, LOST, ShardIndex, digest_rows
from deit_fast.data.sources.tar_reader import BLOCK, DamagedError, TarReader, whole_blocks
from deit_fast.runtime.errors import DataError, RunError, printable


class IndexedShards(Source):
    """The images of an index, in its order; `labels` is a view of the index's rows, which a machine's processes share.

    The index holds no names. `name` reads them from the tar header before the image, since only messages need a name.
    """

    def __init__(self, uri: str, index: ShardIndex) -> None:
        super().__init__(uri, index.classes, index.rows["label"])
        self.index = index
        self.counted = index.counted
        self.shard_edges = index.edges
        self._edges: list[int] = index.edges.tolist()
        self._labels, self._classes = self.labels, self.classes

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as stored, uint8 [bytes]. Raises DataError where its shard is unreadable or ends too early."""
        offset, size, _ = self.index.rows[index].tolist()
        data = self._read_range(self.shard_of(index), offset * BLOCK, size)
        if len(data) < size:
            name = printable(self.name(index))
            raise DataError(f"{name}: expected {size} bytes, found {len(data)}; the shard changed")
        return data

    def name(self, index: int) -> str:
        """SHARD:MEMBER, or SHARD:image N of M where the member's header is unreadable."""
        shard = self.shard_of(index)
        start, stop = self._edges[shard], self._edges[shard + 1]
        member = f"image {index - start + 1} of {stop - start}"
        with suppress(OSError, MemoryError, DataError, RunError, DamagedError):
            member = self._member(index, shard, start) or member
        return f"{self.shard_name(shard)}:{member}"

    def stored_in(self, index: int) -> str:
        return self.shard_name(self.shard_of(index))

    def identity(self) -> Identity:
        """The index's identity, updated for classes and labels that were renumbered or renamed since."""
        if self.labels is self._labels and self.classes == self._classes:
            return self.index.identity
        rows = self.index.rows.copy()
        rows["label"] = self.labels
        return identify_rows(rows, [shard.digest for shard in self.index.shards], self.classes)

    def identity_of(self, images: NDArray[np.int64], labels: NDArray[np.int64], classes: list[str]) -> Identity:
        rows = self.index.rows[images]
        rows["label"] = labels
        edges = np.searchsorted(images, self.index.edges).tolist()
        return identify_rows(rows, [digest_rows(rows[start:stop]) for start, stop in pairwise(edges)], classes)

    def listed_names(self) -> Sequence[str]:
        """SHARD:N, the N-th image of a shard counted from 0.

        SHARD is its file's name, or its path where two names are equal.
        """
        paths = [shard.name for shard in self.index.shards]
        files = [split_place(path)[1] for path in paths]
        shards = paths if len(set(files)) < len(files) else files

        def make(index: int) -> str:
            shard = self.shard_of(index)
            return f"{shards[shard]}:{index - self._edges[shard]}"

        return LazyNames(len(self), make)

    def shard_of(self, index: int) -> int:
        """The number of the shard that holds image `index`."""
        return bisect_right(self._edges, index) - 1

    @abstractmethod
    def shard_name(self, shard: int) -> str:
        """The place of shard number `shard`, for messages: a path or a URI."""

    @abstractmethod
    def _read_range(self, shard: int, offset: int, size: int) -> NDArray[np.uint8]:
        """`size` bytes of shard number `shard` from byte `offset` on, fewer where it ends, uint8 [bytes], read-only.

        Raises DataError, and OSError as it comes from the system.
        """

    def _member(self, index: int, shard: int, first: int) -> str | None:
        """The member's name in the headers before an image.

        There may be several headers, so reading starts after the image before.
        """
        offset = int(self.index.rows["offset"][index])
        if offset == LOST:
            return None
        before, size, _ = self.index.rows[index - 1].tolist() if index > first else (LOST, 0, 0)
        start = 0 if before == LOST else before * BLOCK + whole_blocks(size)
        if size == LARGEST:  # the size does not fit 32 bits
            start = offset * BLOCK - BLOCK
        end = offset * BLOCK + BLOCK

        def read(place: int, count: int) -> bytes:
            return self._read_range(shard, place, min(count, end - place)).tobytes()

        for member in TarReader(read, self.index.shards[shard].bytes).members(start):
            if member.offset >= offset * BLOCK:
                return member.name if member.offset == offset * BLOCK else None
        return None
