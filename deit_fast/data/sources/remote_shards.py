"""Shards in an object store: chosen by their names, then fetched, whole, into the cache folder of this machine.

All of them before the first step: a batch is drawn from the whole data set, so that it needs nearly all shards, and
labels are read from every one to know what there is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.folder_walk import is_image
from deit_fast.data.sources.hidden import is_hidden
from deit_fast.data.sources.shard_names import choose_shards, refuse_gaps, refuse_missing
from deit_fast.data.sources.source_format import Request, SourceFormat
from deit_fast.data.sources.splits import (
    Split,
    group_by_split,
    refuse_mixed,
    shard_glob,
    split_folders,
    split_of,
    split_of_shard,
    take_split,
)
from deit_fast.runtime.braces import expand_braces, has_braces
from deit_fast.runtime.errors import DataError, RunError, StorageError
from deit_fast.runtime.files import atomic_path, exclusive
from deit_fast.runtime.object_store import Object, fetch, fetch_all, is_remote, list_objects


def fetch_shards(uri: str, split: Split | None) -> list[Path]:
    """The shards that `uri` means (a .tar, a brace range, a glob of names, a folder) as files, classes.txt beside them.

    One that changed in the store is fetched anew. Raises DataError, one line.
    """
    with _data_errors():
        return _fetch(uri, *_choose(uri, split))


def _fetch(uri: str, shards: list[Object], classes: Object | None) -> list[Path]:
    paths = fetch_all(shards, uri)
    _place_classes(classes, paths[0].with_name("classes.txt"))
    return paths


def find_remote_validation(uri: str) -> str | None:
    """The validation split beside the training split that `uri` names or holds: a folder or a glob of names, else None.

    Raises DataError where there are several.
    """
    with _data_errors():
        folder, _, name = uri.rstrip("/").rpartition("/")
        beside = "train" in (split_of(name), split_of_shard(name))
        if not beside:
            if name.endswith(".tar"):
                return None
            folder = uri.rstrip("/")
        inside, objects = list_objects(folder)
        found = group_by_split(inside) if beside else _split_folders(folder, inside)
        if "val" in found:
            return f"{folder}/{take_split(folder, found, 'val')}"
        pattern = None if found else shard_glob([each.name for each in objects], "val")
        return None if pattern is None else f"{folder}/{pattern}".rstrip("/")


def _split_folders(folder: str, inside: set[str]) -> dict[str, list[str]]:
    def holds_images(name: str) -> bool:
        return any(is_image(each.name) for each in list_objects(f"{folder}/{name}")[1])

    return split_folders(folder, (name for name in inside if not is_hidden(name)), holds_images)


def _choose(uri: str, split: Split | None) -> tuple[list[Object], Object | None]:
    """The shards, and classes.txt beside the first."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    if has_braces(uri):
        names = expand_braces(uri)
        listed = [each for parent in sorted({name.rpartition("/")[0] for name in names}) for each in _list(parent)]
        found = {each.uri: each for each in listed}
        refuse_missing(uri, names, [name for name in names if name not in found])
        return [found[name] for name in names], found.get(f"{names[0].rpartition('/')[0]}/classes.txt")
    if name.endswith(".tar"):
        listed = _list(folder)
        shards = [each for each in listed if each.name == name or fnmatchcase(each.name, name)]
        if not shards:
            raise DataError(f"{uri}: expected .tar shards, found no such object")
        if len(shards) > 1:
            refuse_mixed(uri, [each.name for each in shards])
            refuse_gaps([Path(each.uri) for each in shards])
        return shards, _classes_of(listed)
    folder = uri.rstrip("/")
    inside, listed = list_objects(folder)
    if splits := _split_folders(folder, inside):
        folder, split = f"{folder}/{take_split(folder, splits, split)}", None
        listed = _list(folder)
    shards = [each for each in listed if each.name.endswith(".tar") and not is_hidden(each.name)]
    if not shards:
        raise DataError(f"{uri}: expected .tar shards (deit-fast data shard makes them), found none in {folder}")
    chosen = {path.name for path in choose_shards(uri, [Path(each.name) for each in shards], split)}
    return [each for each in shards if each.name in chosen], _classes_of(listed)


def _list(folder: str) -> list[Object]:
    return list_objects(folder)[1]


def _classes_of(listed: list[Object]) -> Object | None:
    return next((each for each in listed if each.name == "classes.txt"), None)


def _place_classes(classes: Object | None, path: Path) -> None:
    """The names as they are in the store now, or none."""
    with exclusive(path.with_name(".classes.txt.lock")):
        if classes is None:
            path.unlink(missing_ok=True)
            return
        content = fetch(classes).read_bytes()
        if not path.exists() or path.read_bytes() != content:
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)


@contextmanager
def _data_errors() -> Iterator[None]:
    try:
        yield
    except StorageError:  # whatever the store has, it does not answer
        raise
    except RunError as error:
        raise DataError(str(error)) from None


def _open(request: Request) -> Source:
    with _data_errors():
        shards, classes = _choose(request.uri, request.split)
        source = request.open_shards(request.uri, _fetch(request.uri, shards, classes))
    if not request.uri.endswith(".tar"):
        source.place = shards[0].uri.rpartition("/")[0]
    return source


SOURCE = SourceFormat(
    recognises=lambda request: is_remote(request.uri),
    open=_open,
    find_validation=lambda request: find_remote_validation(request.uri),
)
