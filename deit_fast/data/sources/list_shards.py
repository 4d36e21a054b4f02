"""Tar shards as far as they can be read, with all their faults listed, for a check: no index has a say."""

from collections.abc import Sequence
from pathlib import Path

from deit_fast.data.sources.merge_shards import Part, merge_parts
from deit_fast.data.sources.open_index import file_version, make_part, read_shard
from deit_fast.data.sources.samples import MAX_CLASSES
from deit_fast.data.sources.shard_listing import without_folders
from deit_fast.data.sources.tar_shards import TarShards, classes_beside
from deit_fast.runtime.errors import printable


class ListedShards(TarShards):
    """The sound samples of WebDataset shards, found by reading every header."""

    def __init__(self, uri: str, shards: Sequence[Path]) -> None:
        named = classes_beside(shards[0])
        self.faults: list[tuple[str, str]] = []
        """Shard, printable, and what is wrong, in words; several of a shard may be."""
        read = [read_shard(shard, named, len(named) or MAX_CLASSES) for shard in shards]
        numbered = any(isinstance(sample.label, int) for listing, _ in read for sample in listing.samples)
        parts: list[Part] = []
        for shard, (listing, status) in zip(shards, read, strict=True):
            listing = without_folders(listing) if numbered else listing
            words = [fault.words for fault in listing.faults] + listing.repeats
            words += ["no members"] if not (words or listing.samples) else []
            parts.append(make_part(shard.name, listing, status.st_size, file_version(status)))
            self.faults += [(printable(str(shard)), each) for each in words]
        super().__init__(uri, shards, merge_parts(parts, shards, named))
