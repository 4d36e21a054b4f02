"""Data sets known by an index alone: on a web server, which lists nothing, or with shards in another place."""

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.place import join_place, split_place
from deit_fast.data.sources.remote_shards import open_objects
from deit_fast.data.sources.shard_index import ShardIndex, is_store_version, read_index
from deit_fast.data.sources.source_format import Request, SourceFormat
from deit_fast.data.sources.splits import split_of_shard
from deit_fast.data.sources.web_folder import INDEX_SUFFIX, ROWS_SUFFIX, find_all
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.object_store import Object, fetch_file, is_remote, is_web, without_query


def _indexes(request: Request) -> list[str]:
    """Paths or URIs of the indexes at a place without shards."""
    if split_place(request.place.uri)[1].endswith(INDEX_SUFFIX):
        return list(request.place.named)
    if request.place.shards:
        return []
    names = sorted(name for name in request.files if name.endswith(INDEX_SUFFIX))
    return [join_place(request.place.uri, name) for name in names]


def _choose(request: Request) -> str:
    """The index of the split. Raises DataError where there is none, or where several could be meant."""
    found = {place: split_of_shard(split_place(place)[1]) for place in _indexes(request)}
    chosen = [place for place, split in found.items() if request.split in (split, None) or len(found) == 1]
    if request.split is not None and any(found.values()):
        chosen = [place for place in chosen if found[place] == request.split]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise DataError(f"{request.uri}: expected one split, found several; name {_or(chosen)}")
    raise DataError(f"{request.uri}: expected {request.split}{INDEX_SUFFIX}; to take other images, name {_or(found)}")


def _or(places: Iterable[str]) -> str:
    return " or ".join(map(without_query, places))


def _open(request: Request) -> Source:
    place = _choose(request)
    folder, name = split_place(place)
    rows = join_place(folder, name.removesuffix(INDEX_SUFFIX) + ROWS_SUFFIX)
    try:
        index = read_index(fetch_file(place).read_bytes(), fetch_file(rows))
    except FileNotFoundError:
        raise DataError(f"{place}: expected {split_place(rows)[1]} beside it, found none") from None
    except ValueError as error:
        raise DataError(f"{without_query(place)}: {error}; run deit-fast data index again") from None
    names = [shard.name if _is_whole(shard.name) else join_place(folder, shard.name) for shard in index.shards]
    _refuse_elsewhere(place, names)
    if not is_remote(names[0]):
        return request.open_shards(request.uri, [Path(name) for name in names])
    return open_objects(request, _objects(place, names, index), index)


def _refuse_elsewhere(place: str, names: list[str]) -> None:
    """Raises DataError where an index in a store names files here, or another web server: that must get no token."""
    here = urlsplit(place).netloc
    for name in names if is_remote(place) else []:
        if not is_remote(name) or (is_web(name) and urlsplit(name).netloc != here):
            expected = "shards beside it or in a store; put an index of others into a folder of this machine"
            raise DataError(f"{without_query(place)}: expected {expected}, found {without_query(name)}")


def _is_whole(name: str) -> bool:
    return is_remote(name) or name.startswith("/")


def _objects(place: str, names: list[str], index: ShardIndex) -> list[Object]:
    """The shards that the index lists; a store is asked for the version of a shard where the index does not know it.

    Raises DataError where a shard is missing or has another size.
    """
    objects = [Object(name, shard.bytes, shard.version) for name, shard in zip(names, index.shards, strict=True)]
    unknown = [each.uri for each in objects if not is_store_version(each.version)]
    if not unknown:
        return objects
    found = find_all(unknown)
    for each in objects:
        if each.uri in unknown and (there := found.get(each.uri)) is not None and there.size != each.size:
            said = f"expected {each.size} bytes, as {without_query(place)} says"
            raise DataError(f"{without_query(each.uri)}: {said}, found {there.size}")
    if missing := [uri for uri in unknown if uri not in found]:
        raise DataError(
            f"{without_query(place)}: expected {len(objects)} shards, {len(missing)} missing, "
            f"{without_query(missing[0])} first"
        )
    return [found.get(each.uri, each) for each in objects]


SOURCE = SourceFormat(recognises=lambda request: bool(_indexes(request)), open=_open, remote=True)
