"""Makes the index of shards in a store by reading each shard once as a stream, many at a time, without storing them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from deit_fast.data.sources.merge_shards import Part, merge_parts
from deit_fast.data.sources.open_index import make_part
from deit_fast.data.sources.shard_index import ShardIndex
from deit_fast.data.sources.shard_listing import list_samples
from deit_fast.data.sources.tar_reader import TarReader
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.object_store import Object, stream_object
from deit_fast.runtime.progress import progress

_STREAMS = 16  # shards read at once, because one connection does not use a network's full bandwidth


def build_index(shards: Sequence[Object], classes: list[str], known: ShardIndex | None = None) -> ShardIndex:
    """The index of shards in a store, in their order, named by their URIs.

    classes: the names in classes.txt, [] without such a file. known: an earlier index, from which the entries of
    unchanged shards are taken. Raises DataError, one line, for a shard that is not whole or not made of images with
    labels, StorageError and RunError as the store does.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    parts = _unchanged(known, classes) if known is not None else {}

    def part_of(shard: Object) -> Part:
        if (part := parts.get((shard.uri, shard.size, shard.version))) is not None:
            return part
        listing = list_samples(TarReader(_Stream(stream_object(shard)).read, shard.size), label_of=label_of)
        if (expected := listing.refusal()) is not None:
            raise DataError(f"{shard.uri}: expected {expected}")
        return make_part(shard.uri, listing, shard.size, shard.version)

    pool = ThreadPoolExecutor(_STREAMS)
    try:
        found = list(progress(pool.map(part_of, shards), len(shards), "index shards"))
    finally:  # an error or an interrupt does not wait for the other shards
        pool.shutdown(wait=False, cancel_futures=True)
    return merge_parts(found, [shard.uri for shard in shards], classes)


def _unchanged(known: ShardIndex, classes: list[str]) -> dict[tuple[str, int, str], Part]:
    """An index's parts of shards with a known version, by URI, size and version."""
    if known.kind == "names" and known.classes != classes:
        return {}
    folders = tuple(known.classes) if known.kind == "folders" else ()
    return {
        (entry.name, entry.bytes, entry.version): Part(entry, known.rows_of(number), folders, known.kind == "names")
        for number, entry in enumerate(known.shards)
        if entry.version
    }


class _Stream:
    """Bytes that arrive once, from front to back, and are read by offset; bytes before the last offset are dropped."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._start, self._buffer = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer where the stream ends. `offset` must not decrease between calls."""
        while self._start + len(self._buffer) < offset + size and (piece := next(self._pieces, b"")):
            gone = min(offset - self._start, len(self._buffer))
            self._start, self._buffer = self._start + gone, self._buffer[gone:] + piece
        begin = offset - self._start
        return self._buffer[begin : begin + size]
