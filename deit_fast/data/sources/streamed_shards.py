"""Tar shards in a store, read while they come: from this machine's disk where they are there, else from the store."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.indexed_shards import IndexedShards
from deit_fast.data.sources.shard_cache import SHARED, Disk, ShardCache
from deit_fast.data.sources.shard_index import ShardIndex
from deit_fast.runtime.object_store import Object, read_range, without_query


class StreamedShards(IndexedShards):
    """The images of an index whose shards are objects of a store, in its order.

    objects: of the shards, as the store has them now. A batch never depends on what is on the disk or when it came. An
    image that the store fails to give is no bad image: reading it raises StorageError where the store goes on failing,
    RunError, ChangedError among them, where that is for good.
    """

    readers = 64  # they wait for a network

    def __init__(self, uri: str, index: ShardIndex, objects: Sequence[Object], disk: Disk = SHARED) -> None:
        super().__init__(uri, index)
        self.shard_bytes = np.array([each.size for each in objects], np.int64)
        self._objects = objects
        self._cache = ShardCache(objects, disk)

    def __getstate__(self) -> dict[str, Any]:
        """All but what this process has under way."""
        return {name: value for name, value in self.__dict__.items() if name != "_cache"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._cache = ShardCache(self._objects)

    def expect(self, shards: NDArray[np.int64], protected: int) -> None:
        self._cache.expect(shards.tolist(), protected)

    def limit_cache(self, limit: int | None) -> int | None:
        self._cache.limit = limit
        try:
            return self._cache.limit
        except OSError:  # nothing can be kept there, and every image comes from the store
            return None

    def shard_name(self, shard: int) -> str:
        return without_query(self._objects[shard].uri)

    def _read_range(self, shard: int, offset: int, size: int) -> NDArray[np.uint8]:
        data = self._cache.read(shard, offset, size)
        if data is None:
            wanted = self._objects[shard]
            data = read_range(wanted.uri, offset, size, wanted.version)
        return np.frombuffer(data, np.uint8)
