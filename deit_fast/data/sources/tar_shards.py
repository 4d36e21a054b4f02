"""WebDataset tar shards: their samples are found through the index that DALI's wds2idx makes."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source, read_bytes
from deit_fast.data.sources.classes import check_labels, order_classes, read_class_names
from deit_fast.data.sources.samples import RULE
from deit_fast.data.sources.shard_index import Shard, open_shard
from deit_fast.runtime.errors import DataError, printable
from deit_fast.runtime.progress import progress

OPENING_THREADS = 8


class TarShards(Source):
    """WebDataset shards of KEY.jpg and KEY.cls (the class, as an ASCII integer), in the order given.

    samples.py says what else may be a label. classes.txt beside the first shard names the classes; without it they are
    "0" up to the largest label, or the folders' names where the keys are in a folder of their class.
    """

    def __init__(self, uri: str, shards: Sequence[Path]) -> None:
        names = shards[0].parent / "classes.txt"
        named = read_class_names(names) if names.is_file() else []
        opened = self._open(shards, {name: label for label, name in enumerate(named)})
        self._shards = [str(shard) for shard in shards]
        self._members = [member for shard in opened for member in shard.members]
        self._shard_of = np.repeat(np.arange(len(shards)), [len(shard.members) for shard in opened])
        self._places = np.concatenate([shard.places for shard in opened])
        classes, labels = merge_labels(shards, [(shard.labels, shard.folders) for shard in opened], named)
        if named:
            check_labels(names, classes, int(labels.max()))
        super().__init__(uri, classes, labels)
        self.counted = not named and not any(shard.folders for shard in opened)

    def relative_names(self) -> list[str]:
        """Names of the N members, of whatever shards: a shard may be called otherwise, in a cache for example."""
        return self._members

    def fingerprints(self) -> NDArray[np.int64]:
        """int64 [N, 2], offset and size of each image in its shard, bytes."""
        return self._places

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as stored, uint8 [bytes]. Raises DataError where its shard cannot be read or ends before."""
        offset, size = self._places[index].tolist()
        data = read_bytes(self._shards[self._shard_of[index]], offset, size)
        if len(data) < size:
            name = printable(self.name(index))
            raise DataError(f"{name}: expected {size} bytes, found {len(data)}; the shard changed")
        return data

    def name(self, index: int) -> str:
        return f"{self._shards[self._shard_of[index]]}:{self._members[index]}"

    def _open(self, shards: Sequence[Path], label_of: Mapping[str, int]) -> list[Shard]:
        try:
            with ThreadPoolExecutor(OPENING_THREADS) as pool:
                opened = pool.map(lambda shard: open_shard(shard, label_of), shards)
                return list(progress(opened, len(shards), "open shards"))
        except ValueError as error:
            raise DataError(str(error)) from None


def merge_labels(
    shards: Sequence[Path], parts: Sequence[tuple[NDArray[np.int64], tuple[str, ...]]], named: list[str]
) -> tuple[list[str], NDArray[np.int64]]:
    """Classes and labels [N] of all shards together, from each one's labels [n] and the folders that they stand for.

    named: the classes, where there is a classes.txt. Raises DataError where some shards have folders for labels and
    others numbers, where all folders are one, and for a folder that classes.txt lacks.
    """
    folders = sorted({name for _, names in parts for name in names})
    if not folders:
        labels = np.concatenate([labels for labels, _ in parts])
        return named or [str(label) for label in range(labels.max(initial=-1) + 1)], labels
    odd = next((place for place, (labels, names) in enumerate(parts) if len(labels) and not names), None)
    if odd is not None:
        one = next(place for place, (_, names) in enumerate(parts) if names)
        raise DataError(f"{shards[one]}: expected labels (KEY.cls) as in {shards[odd].name}, found none")
    classes = named or order_classes(folders)
    label_of = {name: label for label, name in enumerate(classes)}
    unknown = next((name for name in folders if name not in label_of), None)
    if unknown is not None:
        where = shards[0].with_name("classes.txt")
        raise DataError(f"{where}: expected the names of all folders in the shards, {unknown!r} is not there")
    if len(classes) == 1:
        raise DataError(
            f"{shards[0]}: expected KEY.jpg and KEY.cls side by side, found images without labels, "
            f"all in the folder {classes[0]!r} ({RULE})"
        )
    return classes, np.concatenate(
        [np.array([label_of[name] for name in names], np.int64)[labels] for labels, names in parts if len(labels)]
    )
