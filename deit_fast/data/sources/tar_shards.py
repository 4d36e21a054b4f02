"""WebDataset tar shards on a file system, whose samples an index knows (open_index.py)."""

import os
from collections.abc import Sequence
from glob import glob
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source, read_bytes
from deit_fast.data.sources.classes import read_class_names
from deit_fast.data.sources.indexed_shards import IndexedShards
from deit_fast.data.sources.open_index import open_index
from deit_fast.data.sources.shard_index import ShardIndex
from deit_fast.data.sources.shard_names import choose_shards, refuse_gaps, refuse_missing
from deit_fast.data.sources.source_format import Request, SourceFormat
from deit_fast.data.sources.splits import refuse_mixed
from deit_fast.runtime.braces import expand_braces, has_braces


class TarShards(IndexedShards):
    """WebDataset shards of KEY.jpg and KEY.cls (the class, as an ASCII integer), in the order given.

    samples.py says what else may be a label. classes.txt beside the first shard names the classes; without it they are
    "0" up to the largest label, or the folders' names where the keys are in a folder of their class.
    """

    def __init__(self, uri: str, shards: Sequence[Path], index: ShardIndex | None = None) -> None:
        """index: of these shards, found or made where it is not given. Raises as `open_index`."""
        super().__init__(uri, index or open_index(shards, classes_beside(shards[0])))
        self._shards = [str(shard) for shard in shards]

    def shard_name(self, shard: int) -> str:
        return self._shards[shard]

    def _read_range(self, shard: int, offset: int, size: int) -> NDArray[np.uint8]:
        return read_bytes(self._shards[shard], offset, size)


def classes_beside(shard: Path) -> list[str]:
    """The classes that classes.txt beside a shard names; [] where there is none. Raises DataError."""
    names = shard.with_name("classes.txt")
    return read_class_names(names) if names.is_file() else []


def _in_folder(request: Request) -> list[Path]:
    return sorted(request.path / name for name in request.files if name.endswith(".tar"))


def _by_glob(request: Request) -> list[Path]:
    return sorted(Path(match) for match in glob(str(request.path)) if match.endswith(".tar"))


def _recognises(request: Request) -> bool:
    """A folder of shards, a shard, a range of them in braces, or a glob that finds some."""
    if request.path.is_dir():
        return bool(_in_folder(request))
    if request.path.is_file():
        return request.path.suffix == ".tar"
    return has_braces(request.uri) or bool(_by_glob(request))


def _open(request: Request) -> Source:
    uri, path = request.uri, request.path
    if path.is_dir():
        shards = choose_shards(uri, _in_folder(request), request.split)
    elif path.is_file():
        shards = [path]
    elif has_braces(uri):
        names = expand_braces(str(path))
        refuse_missing(uri, names, [name for name in names if not _exists(name)])
        shards = [Path(name) for name in names]
    else:
        shards = _by_glob(request)
        refuse_mixed(uri, [shard.name for shard in shards])
        refuse_gaps(shards)
    return request.open_shards(uri, shards)


def _exists(path: str) -> bool:
    """Whether there is a file. Raises OSError where the storage fails, which to os.path.exists is a missing file."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


SOURCE = SourceFormat(recognises=_recognises, open=_open, general=True)
