"""How data sets are told apart: each module of this folder with a `SOURCE` opens one kind; open.py asks them all."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.folder_walk import has_images
from deit_fast.data.sources.hidden import is_hidden
from deit_fast.data.sources.splits import (
    Split,
    group_by_split,
    shard_glob,
    split_folders,
    split_of,
    split_of_shard,
    take_split,
)
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
    labels: Path | None = None
    """File of the labels of a folder without class folders."""
    files: frozenset[str] = frozenset()
    """Names of the files in the folder, hidden ones left out."""
    folders: frozenset[str] = frozenset()
    """Names of the folders in it, hidden ones left out."""

    def own_split(self) -> Split:
        """The split, of a place that holds both. Raises DataError where none was asked for."""
        if self.split is None:
            raise DataError(f"{self.uri}: expected to be asked for its training or its validation images")
        return self.split

    def at(self, path: Path, split: Split | None) -> "Request":
        """The same asked of another place. Raises OSError for a folder that cannot be listed."""
        folders, files = set[str](), set[str]()
        with suppress(FileNotFoundError, NotADirectoryError):  # a URI, a glob, a shard
            for entry in os.scandir(path):
                if not is_hidden(entry.name):
                    (folders if entry.is_dir() else files).add(entry.name)
        return replace(self, path=path, split=split, files=frozenset(files), folders=frozenset(folders))

    def holds_images(self, folder: str) -> bool:
        """Whether there is an image in the folder of that name in the place, not in folders of its own."""
        return has_images(self.path / folder)


def find_split_folders(request: Request) -> dict[str, list[str]]:
    """The folders of the place by split, as `split_folders` tells them from classes. Raises DataError."""
    return split_folders(request.uri, request.folders, request.holds_images)


def validation_beside(request: Request) -> str | None:
    """The folder or shards (as a glob) of the validation split beside the training split that a request names or holds.

    None where there are neither. Raises DataError where there are several.
    """
    found = find_split_folders(request)
    path = request.path
    if not found and "train" in (split_of(path.name), split_of_shard(path.name)):
        request = replace(request.at(path.parent, None), uri=str(path.parent))
        found = group_by_split(request.folders)
    if "val" in found:
        return str(request.path / take_split(request.uri, found, "val"))
    pattern = None if found else shard_glob(request.files, "val")
    return None if pattern is None else str(request.path / pattern)


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
    """Whether other formats go first, here and at the split's folder (train/, val/, ...), which is entered before this
    one is asked. Formats that know a place by files of their own are not general."""
    takes_labels: bool = False
    """Whether `open` heeds the request's file of labels, which is refused elsewhere."""
    has_taxonomy: bool = False
    """Whether `open` heeds the request's category; one that is not "name" is refused elsewhere."""
