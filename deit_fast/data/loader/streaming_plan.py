"""The needs of training from shards in a store: a node's disk, time on the network, and how well a block mixes."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source
from deit_fast.recipe.sections import Data
from deit_fast.runtime.errors import RecipeError
from deit_fast.runtime.table import plain_table

GIB = 2**30
_SHARES = (0.5, 1, 2, 4)  # multiples of the recommended block that the table shows
_LANES = (1, 2, 4, 8)  # numbers of lanes that the table shows


def recommended_block(shards: int) -> int:
    """The block size K, in shards, that mixes nearly as well as a full shuffle: pairs_again is 1.25."""
    return min(shards, max(1, round(2 * math.sqrt(shards))))


def pairs_again(shards: int, block: int, lanes: int = 1) -> float:
    """How often two images of a batch share a batch in the next epoch too, relative to a full shuffle.

    About 1 + S / (K L)^2 if a block is several batches; 1 for a full shuffle (block 0), and if one block holds all
    shards.
    """
    largest = largest_block(shards, block, lanes)
    return 1.0 if largest * lanes >= shards else 1 + shards / (largest * lanes) ** 2


def largest_block(shards: int, block: int, lanes: int = 1) -> int:
    """Number of shards in a lane's largest block. A lane with fewer than 2 K shards is one block."""
    if not block:
        return shards
    # A cut between lanes divides a shard; which shards are small decides whether a lane has one more.
    few, many = (shards // lanes, -(-shards // lanes) + 1) if lanes > 1 else (shards, shards)
    return min(shards, max(-(-held // max(1, held // block)) for held in range(max(1, few), many + 1)))


def disk_needed(shard_bytes: NDArray[np.int64], block: int, lanes: int = 1, node_lanes: int = 1) -> int:
    """Bytes that a node has to store: two blocks of each of its lanes, of the largest shards."""
    held = 2 * largest_block(len(shard_bytes), block, lanes) * node_lanes
    return int(np.sort(shard_bytes)[::-1][:held].sum())


def fitting_block(shard_bytes: NDArray[np.int64], limit: int, lanes: int = 1, node_lanes: int = 1) -> int:
    """The largest K whose blocks need at most `limit` bytes of a node's disk; 0 if even single shards need more."""
    low, high = 0, len(shard_bytes)
    while low < high:
        middle = (low + high + 1) // 2
        fits = disk_needed(shard_bytes, middle, lanes, node_lanes) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def disk_limit(data: Data) -> int | None:
    """data.cache_limit, bytes."""
    return None if data.cache_limit is None else int(data.cache_limit * GIB)


def check_disk(data: Data, source: Source, node_lanes: Sequence[int]) -> None:
    """Raises RecipeError where shards are fetched and two blocks of this node's lanes do not fit on its disk."""
    limit = source.limit_cache(disk_limit(data))
    if limit is None or source.shard_bytes is None:
        return
    setting = data.lanes, len(node_lanes)
    needed = disk_needed(source.shard_bytes, data.block, *setting)
    if needed <= limit:
        return
    block = fitting_block(source.shard_bytes, limit, *setting)
    least = _gib(disk_needed(source.shard_bytes, 1, *setting))
    who = "null (80 % of the free disk, " if data.cache_limit is None else f"{data.cache_limit:g} ("
    what = f"two blocks of data.block={data.block} in {source.uri}"
    if not data.block:
        what = f"all shards of {source.uri}, which data.block=0 shuffles"
    way = f"data.block={block} fits" if block else f"not even data.block=1 fits, which needs {least}"
    raise RecipeError(f"data.cache_limit={who}{_gib(limit)}): expected at least {_gib(needed)} for {what}; {way}")


def describe_plan(uri: str, sizes: Sequence[int], images: int, megabytes: float) -> Iterator[str]:
    """Lines about training from these shards: sizes, a table of blocks, and an epoch's time on the network.

    sizes: of the shards, bytes. megabytes: the rate at which a node reads from the store, 10^6 bytes per second.
    """
    shard_bytes, shards, total = np.array(sizes), len(sizes), sum(sizes)
    yield f"{uri}: {images:,} images in {shards:,} shards, {_gib(total)}"
    yield ""
    best = recommended_block(shards)
    blocks = sorted({min(shards, max(1, round(best * share))) for share in _SHARES})
    head = [
        "data.block",
        "disk of a node",
        *(f"again, {lanes} {'lane' if lanes == 1 else 'lanes'}" for lanes in _LANES),
    ]
    rows = [
        [
            f"{block:,}",
            _gib(disk_needed(shard_bytes, block)),
            *(f"{pairs_again(shards, block, lanes):.2f}" for lanes in _LANES),
        ]
        for block in blocks
    ]
    rows.append(["0", _gib(total), "1.00", *("" for _ in _LANES[1:])])
    yield from plain_table([head, *rows])
    yield ""
    yield f"data.block={best} is recommended. disk of a node: two blocks, with one of data.lanes on each node."
    yield "again: how often two images of a batch share one in the next epoch too, over a full shuffle (data.block=0)."
    seconds = total / (megabytes * 1e6)
    yield (
        f"An epoch reads {_gib(total)} on each node, 1/L of it with data.lanes=L on L nodes: at {megabytes:g} MB/s at "
        f"least {_duration(seconds)}, {images / seconds:,.0f} images/s. Training that takes fewer does not wait."
    )


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.1f} MiB"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02} min" if hours else f"{minutes} min" if minutes else f"{math.ceil(seconds)} s"
