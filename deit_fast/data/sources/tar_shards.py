"""WebDataset tar shards on a file system, whose samples an index knows (open_index.py)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import read_bytes
from deit_fast.data.sources.classes import read_class_names
from deit_fast.data.sources.indexed_shards import IndexedShards
from deit_fast.data.sources.open_index import open_index
from deit_fast.data.sources.shard_index import ShardIndex


class TarShards(IndexedShards):
    """WebDataset shards of KEY.jpg and KEY.cls (the class, as an ASCII integer), in the order given.

    samples.py says which other labels are read. A classes.txt beside the first shard names the classes. Without this
    file the classes are "0" up to the largest label, or the folders' names where the keys are in a folder of their
    class.
    """

    def __init__(self, uri: str, shards: Sequence[Path], index: ShardIndex | None = None) -> None:
        """index: of these shards; by default it is found or made. Raises what `open_index` raises."""
        super().__init__(uri, index or open_index(shards, classes_beside(shards[0])))
        self._shards = [str(shard) for shard in shards]

    def shard_name(self, shard: int) -> str:
        return self._shards[shard]

    def _read_range(self, shard: int, offset: int, size: int) -> NDArray[np.uint8]:
        return read_bytes(self._shards[shard], offset, size)


def classes_beside(shard: Path) -> list[str]:
    """The classes in the classes.txt beside a shard; [] without such a file. Raises DataError."""
    names = shard.with_name("classes.txt")
    return read_class_names(names) if names.is_file() else []
