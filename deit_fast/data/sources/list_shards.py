"""Tar shards for `data check`: every readable sample and every fault is listed, and no index is trusted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deit_fast.data.sources.merge_shards import Part, merge_parts
from deit_fast.data.sources.open_index import file_version, known_parts, make_part, read_shard
from deit_fast.data.sources.samples import MAX_CLASSES
from deit_fast.data.sources.shard_listing import without_folders
from deit_fast.data.sources.tar_shards import TarShards, classes_beside
from deit_fast.runtime.errors import printable


class ListedShards(TarShards):
    """The sound samples of WebDataset shards, found by reading every header."""

    def __init__(self, uri: str, shards: Sequence[Path]) -> None:
        named = classes_beside(shards[0])
        self.faults: list[tuple[str, str]] = []
        """Pairs of a shard's printable name and a fault in words; a shard may have several faults."""
        read = [read_shard(shard, named, len(named) or MAX_CLASSES) for shard in shards]
        numbered = any(isinstance(sample.label, int) for listing, _ in read for sample in listing.samples)
        known, index_name = known_parts(shards, named)
        parts: list[Part] = []
        for number, (shard, (listing, status)) in enumerate(zip(shards, read, strict=True)):
            listing = without_folders(listing) if numbered else listing
            words = [fault.words for fault in listing.faults] + listing.repeats
            words += ["no members"] if not (words or listing.samples) else []
            part = make_part(shard.name, listing, status.st_size, file_version(status))
            if number in known and not words and not _same(part, known[number]):
                words = [f"the index has other images or labels than the shard; remove {index_name}"]
            parts.append(part)
            self.faults += [(printable(str(shard)), each) for each in words]
        super().__init__(uri, shards, merge_parts(parts, list(map(str, shards)), named))


def _same(one: Part, other: Part) -> bool:
    """Whether the images of two parts have the same offsets and the same labels."""
    labels = [
        [part.folders[label] for label in part.rows["label"].tolist()] if part.folders else part.rows["label"].tolist()
        for part in (one, other)
    ]
    places = all(np.array_equal(one.rows[name], other.rows[name]) for name in ("offset", "size"))
    return places and labels[0] == labels[1]
