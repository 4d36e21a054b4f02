"""Shards in a store: read while they come where they have an index, else fetched, whole, before the first image."""

from collections.abc import Sequence
from pathlib import Path

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.list_shards import ListedShards
from deit_fast.data.sources.place import Files, look, split_place
from deit_fast.data.sources.shard_index import ShardIndex, read_index
from deit_fast.data.sources.source_format import Request
from deit_fast.data.sources.splits import split_of_shard
from deit_fast.data.sources.streamed_shards import StreamedShards
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.files import atomic_path, exclusive
from deit_fast.runtime.object_store import Object, fetch, fetch_all

_REMEDY = "run deit-fast data index"


def open_remote(request: Request, shards: Files) -> Source:
    """The images of shards in a store. Raises RunError, DataError for an index that is not of these shards.

    `data check` looks at the shards themselves, whatever an index says of them.
    """
    objects = [each for each in shards.values() if each is not None]
    folder = split_place(objects[0].uri)[0]
    files = request.place.files if folder == request.place.uri else look(folder).files
    if request.open_shards is not ListedShards and (index := _find_index(files, objects)):
        return open_objects(request, objects, index)
    classes = files.get("classes.txt")
    return _fetch_and_open(request, objects, fetch(classes).read_bytes() if classes is not None else None)


def open_objects(request: Request, objects: Sequence[Object], index: ShardIndex) -> Source:
    """The images of the shards that an index has. Raises RunError."""
    if request.open_shards is ListedShards:
        return _fetch_and_open(
            request, objects, "".join(f"{name}\n" for name in index.classes).encode() if index.named else None
        )
    return StreamedShards(request.uri, index, objects)


def _fetch_and_open(request: Request, objects: Sequence[Object], classes: bytes | None) -> Source:
    """The images of shards that are fetched before. classes: content of classes.txt."""
    paths = fetch_all(list(objects), request.uri)
    _place_classes(classes, paths[0].with_name("classes.txt"))
    return request.open_shards(request.uri, paths)


def _find_index(files: Files, shards: Sequence[Object]) -> ShardIndex | None:
    """The part for these shards of the index beside them; None where there is none. Raises DataError, RunError."""
    stem = split_of_shard(shards[0].name) or "shards"
    description, rows = files.get(f"{stem}.index.json"), files.get(f"{stem}.index.npy")
    if description is None or rows is None:
        return None
    content, path = fetch(description).read_bytes(), fetch(rows)  # once for all processes of a machine
    try:
        index = read_index(content, path)
    except ValueError as error:
        raise DataError(f"{description.uri}: {error}; {_REMEDY}") from None
    known = {entry.name: entry for entry in index.shards}
    for shard in shards:
        entry = known.get(shard.name)
        if entry is None:
            raise DataError(f"{description.uri}: expected an index of {shard.name}, which is there too; {_REMEDY}")
        if entry.bytes != shard.size:
            what = f"has {shard.size} bytes, and had {entry.bytes} when its index was made"
            raise DataError(f"{shard.uri}: {what}; {_REMEDY}")
    return index.take([shard.name for shard in shards])


def _place_classes(content: bytes | None, path: Path) -> None:
    """The names as they are in the store now, or none."""
    with exclusive(path.with_name(".classes.txt.lock")):
        if content is None:
            path.unlink(missing_ok=True)
        elif not path.exists() or path.read_bytes() != content:
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
