"""Shards in an object store: chosen by their names, then fetched, whole, into the cache folder of this machine.

All of them before the first step: a batch is drawn from the whole data set, so that it needs nearly all shards, and
labels are read from every one to know what there is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from deit_fast.data.sources.shard_names import Split, choose_shards, refuse_gaps, refuse_missing
from deit_fast.data.sources.source_format import SourceFormat
from deit_fast.runtime.braces import expand_braces, has_braces
from deit_fast.runtime.errors import DataError, RunError, StorageError
from deit_fast.runtime.files import atomic_path, exclusive
from deit_fast.runtime.object_store import Object, fetch, fetch_all, is_remote, list_objects


def fetch_shards(uri: str, split: Split | None) -> list[Path]:
    """The shards that `uri` means (a .tar, a brace range, a glob of names, a folder) as files, classes.txt beside them.

    One that changed in the store is fetched anew. Raises DataError, one line.
    """
    with _data_errors():
        shards, classes = _choose(uri, split)
        paths = fetch_all(shards, uri)
        _place_classes(classes, paths[0].with_name("classes.txt"))
    return paths


def find_remote_validation(uri: str) -> str | None:
    """The validation split beside the training split that `uri` names or holds: val/ or val-*.tar, else None."""
    with _data_errors():
        folder, _, name = uri.rstrip("/").rpartition("/")
        if not (name == "train" or name.startswith("train-")):
            folder = uri.rstrip("/")
            if name.endswith(".tar"):
                return None
            inside, _ = list_objects(folder)
            if ("train" in inside) != ("val" in inside):
                return None
        inside, objects = list_objects(folder)
    if "val" in inside:
        return f"{folder}/val"
    return f"{folder}/val-*.tar" if any(fnmatchcase(each.name, "val-*.tar") for each in objects) else None


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
            refuse_gaps([Path(each.uri) for each in shards])
        return shards, _classes_of(listed)
    folder = uri.rstrip("/")
    inside, listed = list_objects(folder)
    if {"train", "val"} <= inside and split is None:
        raise DataError(f"{uri}: expected one split, found train/ and val/; name {folder}/train or {folder}/val")
    if split is not None and ({"train", "val"} <= inside or (inside == {"train"} and split == "train")):
        folder, split = f"{folder}/{split}", None
        listed = _list(folder)
    shards = [each for each in listed if each.name.endswith(".tar")]
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


SOURCE = SourceFormat(
    recognises=lambda request: is_remote(request.uri),
    open=lambda request: request.open_shards(request.uri, fetch_shards(request.uri, request.split)),
    find_validation=lambda request: find_remote_validation(request.uri),
)
