"""`deit-fast data index`: makes or updates the index of shards on this machine or in a store."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from deit_fast.data.sources.classes import read_class_names
from deit_fast.data.sources.index_objects import build_index
from deit_fast.data.sources.open import find_validation
from deit_fast.data.sources.open_index import open_index
from deit_fast.data.sources.place import Files, find_place, look, split_place, told_as_data_errors
from deit_fast.data.sources.shard_index import ShardIndex, read_index, write_index
from deit_fast.data.sources.shards import choose_shards
from deit_fast.data.sources.source_format import Request, find_split_folders
from deit_fast.data.sources.splits import Split, split_of, split_of_shard, take_split
from deit_fast.data.sources.tar_shards import TarShards, classes_beside
from deit_fast.runtime.errors import DataError, RunError
from deit_fast.runtime.object_store import fetch, is_remote, write_object


@dataclass(frozen=True)
class Indexed:
    """The index of one split."""

    place: str
    """Path or URI of the index's .json; for local shards, whose index is beside them or in the cache folder, the
    shards'."""
    index: ShardIndex

    def as_text(self) -> str:
        """A line that describes the index."""
        index = self.index
        size = sum(shard.bytes for shard in index.shards) / 1e9
        return (
            f"{self.place}: {len(index.rows)} images of {len(index.classes)} classes in {len(index.shards)} shards, "
            f"{size:.3g} GB"
        )


def index_shards(uri: str, out: Path | None = None) -> list[Indexed]:
    """Makes the index of the shards at a path or URI, and of the validation shards beside them.

    uri: as in `open_source`. out: a folder for the index. The index then names the shards by absolute paths or URIs, so
    that the folder can be opened as the data set. By default the index is put beside the shards. Entries of an earlier
    index for unchanged shards are taken over. Raises DataError, RunError, StorageError.
    """
    with told_as_data_errors(uri):
        found = [_index(uri, "train", out)]
        val = find_validation(uri)
        return [*found, _index(val, "val", out)] if val is not None else found


def _index(uri: str, split: Split, out: Path | None) -> Indexed:
    shards = _find_shards(uri, split)
    names = list(shards)
    folder, first = split_place(names[0])
    if not is_remote(folder):
        paths = [Path(name).absolute() for name in names]
        index = open_index(paths, classes_beside(paths[0]))
        return Indexed(folder, index) if out is None else _write_out(index, list(map(str, paths)), out)
    if out is None and folder.startswith(("http://", "https://")):
        raise RunError(f"{uri}: expected --out FOLDER for the index, as a web server takes no files")
    stem = split_of_shard(first) or "shards"
    objects = [each for each in shards.values() if each is not None]
    files = look(folder).files
    classes = files.get("classes.txt")
    named = read_class_names(fetch(classes)) if classes is not None else []
    index = build_index(objects, named, _read_earlier(out, names[0], files))
    if out is not None:
        return _write_out(index, names, out)
    place = f"{folder}/{stem}.index.json"
    beside = index.called([split_place(name)[1] for name in names])
    with TemporaryDirectory() as temporary:
        write_index(beside, Path(temporary), stem)
        for name in (f"{stem}.index.npy", f"{stem}.index.json"):
            write_object(f"{folder}/{name}", Path(temporary) / name)
    return Indexed(place, index)


def _find_shards(uri: str, split: Split) -> Files:
    """The shards of the split, by path or URI, in order."""
    request = Request(uri, find_place(uri), split, "name", TarShards)
    if found := find_split_folders(request.place):
        request = request.enter(take_split(uri, found, split))
    shards = choose_shards(request)
    if not shards:
        raise DataError(f"{uri}: expected .tar shards (deit-fast data shard makes them), found none")
    return shards


def _write_out(index: ShardIndex, names: Sequence[str], out: Path) -> Indexed:
    stem = _stem_of(names[0])
    write_index(index.called(names), out, stem)
    return Indexed(str(out / f"{stem}.index.json"), index)


def _stem_of(shard: str) -> str:
    """The file name without suffix of an index that is not beside its shards, by the split in their names or folder."""
    folder, name = split_place(shard)
    return split_of_shard(name) or split_of(split_place(folder)[1]) or "shards"


def _read_earlier(out: Path | None, first: str, files: Files) -> ShardIndex | None:
    """The existing index, with its shards named by their URIs; None where there is none that is sound."""
    with suppress(OSError, ValueError):
        if out is not None:
            path = out / f"{_stem_of(first)}.index.json"
            return read_index(path.read_bytes(), path.with_suffix(".npy"))
        folder, name = split_place(first)
        stem = split_of_shard(name) or "shards"
        said, rows = files.get(f"{stem}.index.json"), files.get(f"{stem}.index.npy")
        if said is not None and rows is not None:
            index = read_index(fetch(said).read_bytes(), fetch(rows))
            return index.called([f"{folder}/{shard.name}" for shard in index.shards])
    return None
