"""How data sets are told apart: each module of this folder with a `SOURCE` opens one kind; open.py asks them all."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.place import Place, join_place, look, split_place
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
from deit_fast.runtime.object_store import without_query

VALIDATION_INDEX = "val.index.json"
"""The index of validation images, which are known by it alone where their shards are not listed."""
OpenShards = Callable[[str, Sequence[Path]], Source]
"""(URI, shards in order) -> their images."""


@dataclass(frozen=True)
class Request:
    """What is asked for, and what stands there."""

    uri: str
    """As the user wrote it, for messages and for the source."""
    place: Place
    """What is there, or in the split's folder in it."""
    split: Split | None
    """The images wanted where the place holds those of both; None once the split's folder was entered."""
    category: str
    """Level of a taxonomy that is the class (data.category), for formats that have one."""
    open_shards: OpenShards
    """Opens tar shards: strictly, salvaging or listing, by what they are for."""
    labels: Path | None = None
    """File of the labels of a folder without class folders."""

    @property
    def path(self) -> Path:
        """Path of the place, which does not exist where it is no local file or folder."""
        return Path(self.place.uri)

    @property
    def files(self) -> Set[str]:
        """Names of the files in the folder, hidden ones left out."""
        return self.place.files.keys()

    @property
    def folders(self) -> Set[str]:
        """Names of the folders in it, hidden ones left out."""
        return self.place.folders

    def own_split(self) -> Split:
        """The split, of a place that holds both. Raises DataError where none was asked for."""
        if self.split is None:
            raise DataError(f"{self.uri}: expected to be asked for its training or its validation images")
        return self.split

    def enter(self, folder: str) -> "Request":
        """The same asked of a folder in the place, whose images are of one split. Raises as `look`."""
        return replace(self, place=look(join_place(self.place.uri, folder)), split=None)

    def holds_images(self, folder: str) -> bool:
        """Whether there is an image in the folder of that name in the place, not in folders of its own."""
        return self.place.holds_images(folder)


def find_split_folders(place: Place) -> dict[str, list[str]]:
    """The folders of a place by split, as `split_folders` tells them from classes. Raises DataError."""
    return split_folders(without_query(place.uri), place.folders, place.holds_images)


def validation_beside(request: Request) -> str | None:
    """The folder or shards (as a glob) of the validation split beside the training split that a request names or holds.

    None where there are neither. Raises DataError where there are several.
    """
    place = request.place
    found = find_split_folders(place)
    folder, name = split_place(place.uri)
    if not found and "train" in (split_of(name), split_of_shard(name)):
        place = look(folder)
        found = group_by_split(place.folders)
    if "val" in found:
        return join_place(place.uri, take_split(without_query(place.uri), found, "val"))
    pattern = None if found else shard_glob(place.files, "val")
    listed = any(name.endswith(".tar") for name in place.files)
    if not found and not listed and VALIDATION_INDEX in place.files:
        pattern = VALIDATION_INDEX
    return None if pattern is None else join_place(place.uri, pattern) if pattern else place.uri


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
    remote: bool = False
    """Whether `open` opens places in stores, which others are not asked about."""
