"""Data sets of tar shards: the shards of a folder, a file, a brace range or a glob, on this machine or in a store."""

import re
from collections.abc import Sequence
from pathlib import Path

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.place import Files, join_place, split_place
from deit_fast.data.sources.remote_shards import open_remote
from deit_fast.data.sources.source_format import Request, SourceFormat
from deit_fast.data.sources.splits import refuse_mixed, take_shards
from deit_fast.runtime.braces import expand_braces, has_braces
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.object_store import is_remote, without_query

_SUFFIX = ".tar"
_SHARD_NUMBER = re.compile(r"(.*?)(\d+)((?:-of-\d+)?\.tar)")


def choose_shards(request: Request) -> Files:
    """The shards at the requested place, by path or URI, in order; in a folder, the shards of the split.

    Raises DataError where some are missing, or where some belong to another split than the rest.
    """
    uri, place = request.uri, request.place
    if place.shards:
        names = take_shards(uri, place.shards, request.split)
        shards: Files = {join_place(place.uri, name): place.files[name] for name in names}
    elif place.uri not in place.named and has_braces(place.uri):
        wanted = expand_braces(place.uri)
        missing = [name for name in wanted if name not in place.named]
        if missing:
            raise DataError(
                f"{uri}: expected {len(wanted)} shards, {len(missing)} missing, {without_query(missing[0])} first"
            )
        return place.named
    else:
        shards = {name: found for name, found in place.named.items() if _is_shard(name)}
        refuse_mixed(uri, [split_place(name)[1] for name in shards])
    _refuse_gaps(list(shards))
    return shards


def _refuse_gaps(shards: Sequence[str]) -> None:
    """Raises DataError where a number is missing: a lost shard would only show as a smaller data set."""
    numbered: dict[tuple[str, str], dict[int, str]] = {}
    for shard in shards:
        if match := _SHARD_NUMBER.fullmatch(split_place(shard)[1]):
            numbered.setdefault((match[1], match[3]), {})[int(match[2])] = match[0]
    for present in numbered.values():
        missing = sorted(set(range(min(present), max(present))) - set(present))
        if missing:
            raise DataError(
                f"{without_query(split_place(shards[0])[0])}: expected every shard from {present[min(present)]} to "
                f"{present[max(present)]}, number {missing[0]} is missing"
            )


def _recognises(request: Request) -> bool:
    """Recognises a folder of shards, a shard, a brace range of shards, and a glob that matches some."""
    if request.place.shards or has_braces(request.place.uri):
        return True
    return any(map(_is_shard, request.place.named))


def _is_shard(uri: str) -> bool:
    return split_place(uri)[1].endswith(_SUFFIX)


def _open(request: Request) -> Source:
    shards = choose_shards(request)
    if is_remote(request.place.uri):
        return open_remote(request, shards)
    return request.open_shards(request.uri, [Path(shard) for shard in shards])


SOURCE = SourceFormat(recognises=_recognises, open=_open, general=True, remote=True)
