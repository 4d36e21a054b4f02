"""Whether an index beside shards in a store belongs to the present objects, found out without reading the shards."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from deit_fast.data.sources.shard_index import FILE_VERSION, ShardIndex
from deit_fast.data.sources.tar_reader import BLOCK, is_header
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.object_store import Object, read_range, same_version, without_query

REMEDY = "run deit-fast data index"
_SPOT_CHECKS = 8
_KINDS = {
    "nothing": "",
    "a file's time": rf"({FILE_VERSION})?-?\d{{17,}}",  # in Object, or in an index of local files
    "a generation": r"\d+",
    "a hash": r"[0-9a-f]{40}|[0-9a-f]{64}",
    "a time": r".* GMT",
}


def check_versions(index: ShardIndex, shards: Sequence[Object]) -> ShardIndex | None:
    """The index of these shards, in their order, if it belongs to them; None where shards on this machine are newer.

    Sizes have to be equal, and so do the versions that the index knows. Where the index has versions of another store,
    because the shards were copied, the tar headers in at most 8 shards are read instead. Raises DataError, one line,
    for an object that was replaced, and RunError.
    """
    unknown = []
    for number, (entry, shard) in enumerate(zip(index.shards, shards, strict=True)):
        kind = _kind(shard.version)
        if kind == "nothing" or kind != _kind(entry.version):
            unknown.append(number)
        elif not same_version(entry.version.removeprefix(FILE_VERSION), shard.version):
            if kind == "a file's time":  # local shards, whose index is made anew
                return None
            raise DataError(f"{without_query(shard.uri)}: was replaced after its index was made; {REMEDY}")
    _spot_check(index, shards, [number for number in unknown if index.shards[number].images])
    return index


def _kind(version: str) -> str:
    return next((kind for kind, pattern in _KINDS.items() if re.fullmatch(pattern, version)), "an ETag")


def _spot_check(index: ShardIndex, shards: Sequence[Object], numbers: Sequence[int]) -> None:
    """Raises DataError where the header of a shard's last image is not at the place that the index says."""
    places = np.linspace(0, len(numbers) - 1, min(len(numbers), _SPOT_CHECKS)).astype(int)
    chosen = sorted({numbers[place] for place in places.tolist()})
    if not chosen:
        return

    def looks_right(number: int) -> bool:
        offset, size, _ = index.rows_of(number)[-1].tolist()
        shard = shards[number]
        return is_header(read_range(shard.uri, (offset - 1) * BLOCK, BLOCK, shard.version), size)

    pool = ThreadPoolExecutor(_SPOT_CHECKS)
    try:
        found = list(pool.map(looks_right, chosen))
    finally:  # an error or an interrupt does not wait for the other shards
        pool.shutdown(wait=False, cancel_futures=True)
    for number, right in zip(chosen, found, strict=True):
        if not right:
            what = "has no image where its index says, and was replaced after that was made"
            raise DataError(f"{without_query(shards[number].uri)}: {what}; {REMEDY}")
