"""Shards in a store, which are read while they arrive. Their index lies beside them, or is made here once.

Shards that have to be read as a whole are fetched first: for `data check`, or because some are damaged.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.classes import read_class_names
from deit_fast.data.sources.index_objects import build_index
from deit_fast.data.sources.index_versions import REMEDY, check_versions
from deit_fast.data.sources.list_shards import ListedShards
from deit_fast.data.sources.place import Files, look, split_place
from deit_fast.data.sources.salvage import SalvagedShards
from deit_fast.data.sources.shard_index import ShardIndex, read_index, write_index
from deit_fast.data.sources.source_format import Request
from deit_fast.data.sources.splits import split_of_shard
from deit_fast.data.sources.streamed_shards import StreamedShards
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.files import atomic_path, cache_folder, exclusive
from deit_fast.runtime.object_store import Object, fetch, fetch_all, without_query


def open_remote(request: Request, shards: Files) -> Source:
    """The images of shards in a store. Raises RunError, and DataError for an index of other shards."""
    objects = [each for each in shards.values() if each is not None]
    folder = split_place(objects[0].uri)[0]
    files = request.place.files if folder == request.place.uri else look(folder).files
    if request.open_shards is not ListedShards and (index := _find_index(files, objects)):
        return StreamedShards(request.uri, index, objects)
    classes = fetch(found) if (found := files.get("classes.txt")) is not None else None
    if request.open_shards is not ListedShards:
        try:
            index = _make_index(objects, read_class_names(classes) if classes is not None else [])
            return StreamedShards(request.uri, index, objects)
        except DataError:
            if request.open_shards is not SalvagedShards:
                raise
    return _fetch_and_open(request, objects, classes.read_bytes() if classes is not None else None)


def open_objects(request: Request, objects: Sequence[Object], index: ShardIndex) -> Source:
    """The images of the shards that an index describes. Raises RunError, and DataError for an index of other shards."""
    if request.open_shards is not ListedShards:
        if check_versions(index, objects) is None:
            raise DataError(f"{without_query(request.uri)}: expected an index of the files as they are now; {REMEDY}")
        return StreamedShards(request.uri, index, objects)
    classes = "".join(f"{name}\n" for name in index.classes).encode() if index.named else None
    return _fetch_and_open(request, objects, classes)


def _make_index(shards: Sequence[Object], classes: list[str]) -> ShardIndex:
    """The index, in the cache folder, of shards without one in their store; made or updated by one process.

    Raises what `build_index` raises.
    """
    uris = [shard.uri for shard in shards]
    bare = [without_query(uri) for uri in uris]  # queries hold a right to read, which is not kept and may change
    key = hashlib.sha256("\n".join(bare).encode(errors="surrogateescape")).hexdigest()[:16]
    folder, stem = cache_folder(), f"{split_of_shard(shards[0].name) or 'shards'}-{key}"
    made: ShardIndex | None = None
    try:
        with exclusive(folder / f".{stem}.index.lock"):
            kept = _read_kept(folder, stem)
            if kept is not None and _fits(kept, shards, classes):
                return kept
            known = kept.called(uris) if kept is not None and len(kept.shards) == len(uris) else None
            made = build_index(shards, classes, known).called(bare)
            write_index(made, folder, stem)
            return _read_kept(folder, stem) or made
    except OSError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            words = f"the index of the shards cannot be written to {folder} ({error.strerror or error})"
            print(f"deit-fast: {bare[0]}: {words}; each process makes it at each start", file=sys.stderr)
        return made or build_index(shards, classes)


def _read_kept(folder: Path, stem: str) -> ShardIndex | None:
    try:
        return read_index((folder / f"{stem}.index.json").read_bytes(), folder / f"{stem}.index.npy")
    except (OSError, ValueError):
        return None


def _fits(index: ShardIndex, shards: Sequence[Object], classes: list[str]) -> bool:
    """Whether the index belongs to exactly these objects, by their versions, and to these classes."""
    known = [(entry.name, entry.bytes, entry.version) for entry in index.shards]
    same = known == [(without_query(each.uri), each.size, each.version) for each in shards]
    return same and all(each.version for each in shards) and (index.classes if index.named else []) == classes


def _fetch_and_open(request: Request, objects: Sequence[Object], classes: bytes | None) -> Source:
    """The images of shards that are fetched first. classes: content of classes.txt."""
    paths = fetch_all(list(objects), request.uri)
    _place_classes(classes, paths[0].with_name("classes.txt"))
    return request.open_shards(request.uri, paths)


def _find_index(files: Files, shards: Sequence[Object]) -> ShardIndex | None:
    """The part of the index beside these shards that belongs to them; None without an index.

    Raises DataError, RunError.
    """
    stem = split_of_shard(shards[0].name) or "shards"
    description, rows = files.get(f"{stem}.index.json"), files.get(f"{stem}.index.npy")
    if description is None or rows is None:
        return None
    with ThreadPoolExecutor(2) as pool:  # the first process of a machine fetches for all
        content, path = pool.map(fetch, (description, rows))
    try:
        index = read_index(content.read_bytes(), path)
    except ValueError as error:
        raise DataError(f"{without_query(description.uri)}: {error}; {REMEDY}") from None
    known = {entry.name: entry for entry in index.shards}
    for shard in shards:
        entry = known.get(shard.name)
        if entry is None:
            raise DataError(
                f"{without_query(description.uri)}: expected an index of {shard.name}, which is there too; {REMEDY}"
            )
        if entry.bytes != shard.size:
            what = f"has {shard.size} bytes, and had {entry.bytes} when its index was made"
            raise DataError(f"{without_query(shard.uri)}: {what}; {REMEDY}")
    return check_versions(index.take([shard.name for shard in shards]), shards)


def _place_classes(content: bytes | None, path: Path) -> None:
    """Writes the class names as the store has them now, or removes the file where the store has none."""
    with exclusive(path.with_name(".classes.txt.lock")):
        if content is None:
            path.unlink(missing_ok=True)
        elif not path.exists() or path.read_bytes() != content:
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
