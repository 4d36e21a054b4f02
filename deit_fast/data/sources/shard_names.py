"""Which shards a data set is made of: those of a split, and none missing in between."""

import re
from collections.abc import Sequence
from pathlib import Path

from deit_fast.data.sources.splits import Split, take_shards
from deit_fast.runtime.errors import DataError

_SHARD_NUMBER = re.compile(r"(.*?)(\d+)((?:-of-\d+)?\.tar)")


def refuse_missing(uri: str, names: Sequence[str], missing: Sequence[str]) -> None:
    """Raises DataError where some of the names that a range stands for are missing."""
    if missing:
        raise DataError(f"{uri}: expected {len(names)} shards, {len(missing)} missing, {missing[0]} first")


def choose_shards(uri: str, shards: list[Path], split: Split | None) -> list[Path]:
    """Those of a folder's shards that are of the split, where their names say splits. Raises DataError."""
    chosen = set(take_shards(uri, [shard.name for shard in shards], split))
    shards = [shard for shard in shards if shard.name in chosen]
    refuse_gaps(shards)
    return shards


def refuse_gaps(shards: Sequence[Path]) -> None:
    """Raises DataError where a number is skipped: a shard lost in copying would only show as a smaller data set."""
    numbered: dict[tuple[str, str], dict[int, Path]] = {}
    for shard in shards:
        if match := _SHARD_NUMBER.fullmatch(shard.name):
            numbered.setdefault((match[1], match[3]), {})[int(match[2])] = shard
    for present in numbered.values():
        missing = sorted(set(range(min(present), max(present))) - set(present))
        if missing:
            raise DataError(
                f"{shards[0].parent}: expected every shard from {present[min(present)].name} to "
                f"{present[max(present)].name}, number {missing[0]} is missing"
            )
