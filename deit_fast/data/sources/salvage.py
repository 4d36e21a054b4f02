"""Damaged tar shards in training: their whole samples are used, and a lost sample is treated like a broken image.

A lost sample keeps its number, and reading it fails. Another image then takes its place in the batch, and the lost
sample is named and counted like any other bad image.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.merge_shards import Part, merge_parts
from deit_fast.data.sources.open_index import find_shards
from deit_fast.data.sources.shard_index import LOST, ROW, ShardEntry, ShardIndex, digest_rows
from deit_fast.data.sources.shard_listing import Listing, without_folders
from deit_fast.data.sources.tar_shards import TarShards, classes_beside
from deit_fast.runtime.errors import DataError, printable

_SHOWN = 3


class SalvagedShards(TarShards):
    """Like TarShards, but a shard that is cut off or lacks members gives its whole samples.

    If an index was made of the shard before the damage, it tells how many samples are lost and at which places. Without
    such an index the lost samples come last: one for each fault, and for a shard without an end, as many more as bring
    it up to the size of the largest shard. Raises DataError where no shard has a whole sample, and for a shard that
    cannot be read at all.
    """

    def __init__(self, uri: str, shards: Sequence[Path]) -> None:
        self.damaged: dict[int, str] = {}
        """The faults of damaged shards, in words, by the number of the shard."""
        super().__init__(uri, shards, self._find(shards, classes_beside(shards[0])))

    def read(self, index: int) -> NDArray[np.uint8]:
        """Like TarShards.read, uint8 [bytes], but also raises DataError for a sample that was lost with its shard."""
        if self.index.rows["offset"][index] == LOST:
            reason = self.damaged[self.shard_of(index)]
            raise DataError(f"{printable(self.name(index))}: lost with its shard: {reason}")
        return super().read(index)

    @property
    def lost(self) -> NDArray[np.bool_]:
        """bool [N], whether each sample was lost."""
        return np.asarray(self.index.rows["offset"] == LOST)

    def describe(self) -> list[str]:
        """A line for each damaged shard."""
        lost = {number: int((self.index.rows_of(number)["offset"] == LOST).sum()) for number in self.damaged}
        return [
            f"{printable(self.shard_name(number))}: {reason}; {lost[number]} of its images are lost"
            for number, reason in self.damaged.items()
        ]

    def _find(self, shards: Sequence[Path], classes: list[str]) -> ShardIndex:
        found = find_shards(shards, classes)
        if found.whole is not None:
            return found.whole
        parts = found.parts
        if any(isinstance(part, Part) and not part.folders for part in parts):
            parts = [without_folders(part) if isinstance(part, Listing) else part for part in parts]
        counts = [len(part.rows if isinstance(part, Part) else part.samples) for part in parts]
        if not any(counts):
            first = next(part for part in parts if isinstance(part, Listing))
            reason = first.faults[0].words if first.faults else "no members"
            raise DataError(f"{shards[0]}: expected KEY.jpg and KEY.cls in a whole tar file: {reason}")
        filled = []
        for number, part in enumerate(parts):
            if isinstance(part, Listing):
                words = [fault.words for fault in part.faults] or ["no members"]
                more = len(words) - _SHOWN
                self.damaged[number] = ", ".join(words[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
                part = _fill(part, found.before.get(number), max(counts), shards[number])
            filled.append(part)
        return merge_parts(filled, list(map(str, shards)), classes)


def _fill(listing: Listing, before: Part | None, largest: int, shard: Path) -> Part:
    """The shard's samples, with a lost one at each place where a sample is missing."""
    rows, folders = listing.rows()
    places = _places_in(listing, before) if before is not None else None
    if before is None or places is None:
        faults = max(1, len(listing.faults))
        lost = max(faults, 0 if listing.ends and listing.faults else largest - len(rows))
        filled = np.zeros(len(rows) + lost, ROW)
        filled["offset"] = LOST
        filled[: len(rows)] = rows
    else:
        filled, folders = before.rows.copy(), before.folders
        filled["offset"], filled["size"] = LOST, 0
        for name in ("offset", "size"):
            filled[name][places] = rows[name]
    entry = ShardEntry(shard.name, shard.stat().st_size, "", len(filled), digest_rows(filled))
    return Part(entry, filled, folders)


def _places_in(listing: Listing, before: Part) -> list[int] | None:
    """Places of the samples in `before`, matched in order by size and label; None where one has no match."""
    labels = [before.folders[label] if before.folders else label for label in before.rows["label"].tolist()]
    known = iter(enumerate(zip(before.rows["size"].tolist(), labels, strict=True)))
    places = []
    for sample in listing.samples:
        wanted = (sample.size, sample.label)
        place = next((number for number, each in known if each == wanted), None)
        if place is None:
            return None
        places.append(place)
    return places
