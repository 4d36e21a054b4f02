"""How data sets are told apart: each module of this folder with a `SOURCE` opens one kind; open.py asks them all."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.shard_names import Split
from deit_fast.runtime.errors import DataError

OpenShards = Callable[[str, Sequence[Path]], Source]
"""(URI, shards in order) -> their images."""


@dataclass(frozen=True)
class Request:
    """What is asked for, and what stands there."""

    uri: str
    """As the user wrote it, for messages and for the source."""
    path: Path
    """Path of the URI, or of the split's folder in it. It does not exist where the URI is no local file or folder."""
    split: Split | None
    """The images wanted where the place holds those of both; None once the split's folder was entered."""
    category: str
    """Level of a taxonomy that is the class (data.category), for formats that have one."""
    open_shards: OpenShards
    """Opens tar shards: strictly, salvaging or listing, by what they are for."""
    files: frozenset[str] = frozenset()
    """Names of the files in the folder."""
    folders: frozenset[str] = frozenset()
    """Names of the folders in it."""

    def own_split(self) -> Split:
        """The split, of a place that holds both. Raises DataError where none was asked for."""
        if self.split is None:
            raise DataError(f"{self.uri}: expected to be asked for its training or its validation images")
        return self.split

    def at(self, path: Path, split: Split | None) -> "Request":
        """The same asked of another place. Raises OSError for a folder that cannot be listed."""
        folders, files = set[str](), set[str]()
        if path.is_dir():
            for entry in os.scandir(path):
                (folders if entry.is_dir() else files).add(entry.name)
        return replace(self, path=path, split=split, files=frozenset(files), folders=frozenset(folders))


def validation_beside(request: Request) -> str | None:
    """val/ or val-*.tar beside the training split that a request names or holds; None where there is neither."""
    path = request.path
    if path.name == "train" or path.name.startswith("train-"):
        path = path.parent
    elif (path / "train").is_dir() != (path / "val").is_dir():
        return None
    if (path / "val").is_dir():
        return str(path / "val")
    return str(path / "val-*.tar") if next(path.glob("val-*.tar"), None) else None


@dataclass(frozen=True)
class SourceFormat:
    """One kind of data set."""

    recognises: Callable[[Request], bool]
    """Whether such a data set is there, by names alone. Raises DataError for one that it knows but cannot open."""
    open: Callable[[Request], Source]
    """The images of a place that was recognised. Raises DataError."""
    find_validation: Callable[[Request], str | None] = validation_beside
    """URI of the validation split that belongs to the place; None where there is none."""
    general: bool = False
    """Whether other formats go first, here and at the split's folder (train/ or val/), which is entered before this one
    is asked. Formats that know a place by files of their own are not general."""
    has_taxonomy: bool = False
    """Whether `open` heeds the request's category; one that is not "name" is refused elsewhere."""
