"""Tar shards in a store, read from this machine's disk where they have arrived, else from the store."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.indexed_shards import IndexedShards
from deit_fast.data.sources.shard_cache import SHARED, Disk, ShardCache
from deit_fast.data.sources.shard_index import ShardIndex
from deit_fast.runtime.object_store import Object, read_range, without_query


class StreamedShards(IndexedShards):
    """The images of an index whose shards are objects of a store, in the index's order.

    objects: the shards as the store has them now. Batches do not depend on what the disk holds, nor on when it arrived.
    An image that the store fails to deliver is not a bad image: reading it raises StorageError where the store goes on
    failing, and RunError where the failure is permanent, for example ChangedError.
    """

    readers = 64  # threads wait for a network

    def __init__(self, uri: str, index: ShardIndex, objects: Sequence[Object], disk: Disk = SHARED) -> None:
        super().__init__(uri, index)
        self.shard_bytes = np.array([each.size for each in objects], np.int64)
        self._objects = objects
        self._cache = ShardCache(objects, disk)

    def __getstate__(self) -> dict[str, Any]:
        """The state without this process's threads and transfers."""
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
        except OSError:  # the disk keeps nothing then, and every image is read from the store
            return None

    def shard_name(self, shard: int) -> str:
        return without_query(self._objects[shard].uri)

    def _read_range(self, shard: int, offset: int, size: int) -> NDArray[np.uint8]:
        data = self._cache.read(shard, offset, size)
        if data is None:
            wanted = self._objects[shard]
            data = read_range(wanted.uri, offset, size, wanted.version)
        return np.frombuffer(data, np.uint8)
