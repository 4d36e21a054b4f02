"""Shards in an object store: fetched, whole, into the cache folder of this machine.

All of them before the first step: a batch is drawn from the whole data set, so that it needs nearly all shards, and
labels are read from every one to know what there is.
"""

from pathlib import Path

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.place import Files, look, split_place
from deit_fast.data.sources.source_format import Request
from deit_fast.runtime.files import atomic_path, exclusive
from deit_fast.runtime.object_store import Object, fetch, fetch_all


def open_remote(request: Request, shards: Files) -> Source:
    """The images of shards in a store. One that changed there is fetched anew. Raises RunError."""
    folder = split_place(next(iter(shards)))[0]
    files = request.place.files if folder == request.place.uri else look(folder).files
    paths = fetch_all([each for each in shards.values() if each is not None], request.uri)
    _place_classes(files.get("classes.txt"), paths[0].with_name("classes.txt"))
    return request.open_shards(request.uri, paths)


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
