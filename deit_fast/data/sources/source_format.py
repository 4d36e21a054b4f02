"""Kinds of data sets: each module of this folder with a `SOURCE` opens one kind; open.py asks them all."""

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
"""File name of the index of validation images, by which they are found where shards cannot be listed."""
OpenShards = Callable[[str, Sequence[Path]], Source]
"""(URI, shards in order) -> a source of their images."""


@dataclass(frozen=True)
class Request:
    """The place and the options with which a data set is opened."""

    uri: str
    """The place as the user wrote it, for messages and for the source."""
    place: Place
    """The content of the place, or of the split's folder in it."""
    split: Split | None
    """The split wanted, for a place with images of both splits; None after the split's folder was entered."""
    category: str
    """The level of a taxonomy that is the class (data.category), for formats with a taxonomy."""
    open_shards: OpenShards
    """Opens tar shards: strictly, salvaging whole samples, or listing faults."""
    labels: Path | None = None
    """The file of labels of a folder without class folders."""

    @property
    def path(self) -> Path:
        """The place as a local path; it does not exist where the place is no local file or folder."""
        return Path(self.place.uri)

    @property
    def files(self) -> Set[str]:
        """Names of the files in the folder, without hidden ones."""
        return self.place.files.keys()

    @property
    def folders(self) -> Set[str]:
        """Names of the folders in the folder, without hidden ones."""
        return self.place.folders

    def own_split(self) -> Split:
        """The split wanted, for a place that holds both. Raises DataError where none was requested."""
        if self.split is None:
            raise DataError(f"{self.uri}: expected to be asked for its training or its validation images")
        return self.split

    def enter(self, folder: str) -> "Request":
        """The request for a folder in the place that holds one split. Raises what `look` raises."""
        return replace(self, place=look(join_place(self.place.uri, folder)), split=None)

    def holds_images(self, folder: str) -> bool:
        """Whether the folder `folder` of the place holds an image directly, not in folders of its own."""
        return self.place.holds_images(folder)


def find_split_folders(place: Place) -> dict[str, list[str]]:
    """The folders of splits in a place, by split; classes are left out (`split_folders`). Raises DataError."""
    return split_folders(without_query(place.uri), place.folders, place.holds_images)


def validation_beside(request: Request) -> str | None:
    """The validation folder or shards (as a glob) beside the training split that the request names or holds.

    None where there is no such split. Raises DataError where there are several.
    """
    place = request.place
    found = find_split_folders(place)
    folder, name = split_place(place.uri)
    if not found and "train" in (split_of(name), split_of_shard(name)):
        place = look(folder)
        found = group_by_split(place.folders)
    if "val" in found:
        return join_place(place.uri, take_split(without_query(place.uri), found, "val"))
    pattern = None if found else shard_glob(place.shards, "val")
    if not found and not place.shards and VALIDATION_INDEX in place.files:
        pattern = VALIDATION_INDEX
    return None if pattern is None else join_place(place.uri, pattern) if pattern else place.uri


@dataclass(frozen=True)
class SourceFormat:
    """One kind of data set."""

    recognises: Callable[[Request], bool]
    """Whether a place holds such a data set, told by names alone. Raises DataError where it cannot be opened."""
    open: Callable[[Request], Source]
    """Opens the images of a recognised place. Raises DataError."""
    find_validation: Callable[[Request], str | None] = validation_beside
    """URI of the validation split that belongs to the place; None without one."""
    general: bool = False
    """Whether formats that recognise a place by files of their own are asked first. Before a general format is asked,
    the split's folder (train/, val/, ...) of a place is entered."""
    takes_labels: bool = False
    """Whether `open` uses the request's file of labels; other formats refuse such a file."""
    has_taxonomy: bool = False
    """Whether `open` uses the request's category; other formats refuse any category but "name"."""
    remote: bool = False
    """Whether `open` opens places in stores; other formats are not asked about them."""
