"""Tar shards that are damaged, for training: what is whole is used, what is lost is bad as a broken image is.

A lost sample keeps a place in the numbering, and reading it fails, so that another image takes its place in a batch and
it is named and counted like any other that cannot be used.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.list_shards import Listing, label_samples, list_samples, without_folders
from deit_fast.data.sources.samples import MAX_CLASSES
from deit_fast.data.sources.shard_index import Shard, indexed_names, open_shard
from deit_fast.data.sources.tar_shards import OPENING_THREADS, TarShards
from deit_fast.runtime.errors import DataError, printable
from deit_fast.runtime.progress import progress

_LOST = -1  # the offset of a sample that is not there
_SHOWN = 3


class SalvagedShards(TarShards):
    """As TarShards, but a shard that is cut off or lacks members gives the samples that are whole.

    The index beside the shard, where it was made of this shard before the damage, says how many samples are lost and
    where they stood. Without such an index they come last: one for each fault, and where the shard has no end, as many
    more as the largest shard has. Raises DataError where no shard has a whole sample, and for a shard that cannot be
    read or indexed at all.
    """

    def __init__(self, uri: str, shards: Sequence[Path]) -> None:
        self.damaged: dict[int, str] = {}
        """What is wrong, in words, by the number of the shard."""
        super().__init__(uri, shards)

    def read(self, index: int) -> NDArray[np.uint8]:
        """As TarShards.read, uint8 [bytes]. Raises DataError for a sample that was lost with its shard, too."""
        if self._places[index, 0] == _LOST:
            reason = self.damaged[int(self._shard_of[index])]
            raise DataError(f"{printable(self.name(index))}: lost with its shard: {reason}")
        return super().read(index)

    def describe(self) -> list[str]:
        """A line for each damaged shard."""
        lost = np.bincount(self._shard_of[self._places[:, 0] == _LOST], minlength=len(self._shards))
        return [
            f"{printable(self._shards[number])}: {reason}; {lost[number]} of its images are lost"
            for number, reason in self.damaged.items()
        ]

    def _open(self, shards: Sequence[Path], label_of: Mapping[str, int]) -> list[Shard]:
        with ThreadPoolExecutor(OPENING_THREADS) as pool:
            opening = pool.map(lambda shard: _open_or_list(shard, label_of), shards)
            found = list(progress(opening, len(shards), "open shards"))
        if any(isinstance(each, Shard) and not each.folders for each in found):
            found = [without_folders(each) if isinstance(each, Listing) else each for each in found]
        counts = [len(each.members if isinstance(each, Shard) else each.samples) for each in found]
        if not any(counts):
            first = next(each for each in found if isinstance(each, Listing))
            raise DataError(f"{shards[0]}: expected KEY.jpg and KEY.cls in a whole tar file: {first.faults[0]}")
        opened = []
        for number, each in enumerate(found):
            if isinstance(each, Listing):
                more = len(each.faults) - _SHOWN
                self.damaged[number] = ", ".join(each.faults[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
                each = _fill(each, indexed_names(shards[number]), max(counts))
            opened.append(each)
        return opened


def _open_or_list(shard: Path, label_of: Mapping[str, int]) -> Shard | Listing:
    try:
        return open_shard(shard, label_of)
    except ValueError as error:
        if shard.is_file() and os.access(shard, os.R_OK):
            listing = list_samples(shard, MAX_CLASSES, label_of)
            if listing.faults:
                return listing
            if not listing.samples:
                return Listing([], ["no members"], ends=False)
        raise DataError(str(error)) from None


def _fill(listing: Listing, names: list[str], largest: int) -> Shard:
    """The samples with lost ones among them."""
    samples = {sample.member: sample for sample in listing.samples}
    if not names or not samples.keys() <= set(names):
        lost = max(len(listing.faults), 0 if listing.ends else largest - len(samples))
        names = [*samples, *(f"lost {number}" for number in range(1, lost + 1))]
    found = [samples.get(name) for name in names]
    places = [(sample.offset, sample.size) if sample else (_LOST, 0) for sample in found]
    known, folders = label_samples(listing.samples)
    labels = dict(zip(samples, known.tolist(), strict=True))
    numbers = [labels.get(name, 0) for name in names]
    return Shard(names, np.array(places, np.int64), np.array(numbers, np.int64), folders)
