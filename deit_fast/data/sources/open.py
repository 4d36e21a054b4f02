"""The door to labelled images as they are stored: folders, tar shards, and data sets as downloaded."""

import os
from collections.abc import Callable, Sequence
from glob import glob
from pathlib import Path

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.cifar import Cifar, find_layout
from deit_fast.data.sources.folder import ImageFolder
from deit_fast.data.sources.inaturalist import INaturalist, find_year
from deit_fast.data.sources.remote_shards import fetch_shards, find_remote_validation
from deit_fast.data.sources.shard_names import (
    Split,
    choose_shards,
    expand_braces,
    has_braces,
    refuse_gaps,
    refuse_missing,
)
from deit_fast.data.sources.tar_shards import TarShards
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.object_store import is_remote

OpenShards = Callable[[str, Sequence[Path]], Source]


def open_source(
    uri: str, split: Split | None = None, category: str = "name", open_shards: OpenShards = TarShards
) -> Source:
    """Open labelled images; nothing but directories, shard indexes, labels and annotations is read (and CIFAR, whole).

    uri: a folder of class folders, a folder of .tar shards, one .tar, a brace range (train-{0000..0009}.tar) or a glob
    of them, or the folder of iNaturalist 2018 or 2019, or of CIFAR-10 or CIFAR-100, as downloaded. `split` takes train/
    or val/ of a folder that has both, train-*.tar or val-*.tar of a folder of shards, and the training or validation
    images of the rest. In an object store (s3://, gs://, file://) it has to be shards. `category` is the level of
    iNaturalist's taxonomy. `open_shards` takes the shards found. Raises DataError.
    """
    source = _open(uri, split, category, open_shards)
    if category != "name" and not isinstance(source, INaturalist):
        raise DataError(f"data.category={category!r}: expected iNaturalist's annotations, {uri} has none")
    return source


def find_validation(uri: str) -> str | None:
    """The validation split beside the training split that `uri` names or holds: val/ or val-*.tar, else None.

    The folder of a data set as downloaded holds its own.
    """
    if is_remote(uri):
        return find_remote_validation(uri)
    path = Path(uri).expanduser()
    if path.is_dir():
        files = _list_files(path)
        year = find_year(files, path)
        if find_layout(files) is not None or f"val{year}.json" in files:
            return uri
    if path.name == "train" or path.name.startswith("train-"):
        path = path.parent
    elif (path / "train").is_dir() != (path / "val").is_dir():
        return None
    if (path / "val").is_dir():
        return str(path / "val")
    return str(path / "val-*.tar") if next(path.glob("val-*.tar"), None) else None


def _open(uri: str, split: Split | None, category: str, open_shards: OpenShards) -> Source:
    if is_remote(uri):
        return open_shards(uri, fetch_shards(uri, split))
    path = Path(uri).expanduser()
    if path.is_dir():
        try:
            return _open_folder(uri, path, split, category, open_shards)
        except OSError as error:
            raise DataError(f"{error.filename}: expected a readable folder ({error.strerror})") from None
    if path.is_file():
        if path.suffix != ".tar":
            raise DataError(f"{uri}: expected a folder of images or .tar shards, found a file named *{path.suffix}")
        return open_shards(uri, [path])
    if has_braces(uri):
        names = expand_braces(str(path))
        refuse_missing(uri, names, [name for name in names if not os.path.exists(name)])
        return open_shards(uri, [Path(name) for name in names])
    found = sorted(Path(match) for match in glob(str(path)) if match.endswith(".tar"))
    if not found:
        raise DataError(f"{uri}: expected a local folder of images or .tar shards, found nothing there")
    refuse_gaps(found)
    return open_shards(uri, found)


def _open_folder(uri: str, folder: Path, split: Split | None, category: str, open_shards: OpenShards) -> Source:
    files = _list_files(folder)
    year, layout = find_year(files, folder), find_layout(files)
    if year is not None or layout is not None:
        if split is None:
            raise DataError(f"{uri}: expected to be asked for its training or its validation images")
        return Cifar(uri, folder, layout, split) if layout else INaturalist(uri, folder, year or "", split, category)
    folders = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    if folders == {"train"} and split == "train":
        return _open_split(uri, folder / split, open_shards)
    if {"train", "val"} <= folders:
        if split is None:
            raise DataError(
                f"{uri}: expected one split, found train/ and val/; name {folder / 'train'} or {folder / 'val'}"
            )
        return _open_split(uri, folder / split, open_shards)
    return _open_split(uri, folder, open_shards, split)


def _open_split(uri: str, folder: Path, open_shards: OpenShards, split: Split | None = None) -> Source:
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        return ImageFolder(uri, folder)
    return open_shards(uri, choose_shards(uri, shards, split))


def _list_files(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if not entry.is_dir()}
