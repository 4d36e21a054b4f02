"""`open_source`, the way to labelled images as they are stored: folders, tar shards, data sets as downloaded.

A place is shown to every format of this folder (source_format.py). Those that know it by files of their own go first.
Where none does, and the place has a folder of the split, that folder is shown to all formats instead. That two formats
claim a place is an error.
"""

from pathlib import Path

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.shard_names import Split
from deit_fast.data.sources.source_format import OpenShards, Request, SourceFormat, validation_beside
from deit_fast.data.sources.tar_shards import TarShards
from deit_fast.runtime.discover import discover
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.patience import patiently


def open_source(
    uri: str, split: Split | None = None, category: str = "name", open_shards: OpenShards = TarShards
) -> Source:
    """Open labelled images; nothing but directories, shard indexes, labels and annotations is read (and CIFAR, whole).

    uri: a folder of class folders, a folder of .tar shards, one .tar, a brace range (train-{0000..0009}.tar) or a glob
    of them, or the folder of iNaturalist 2018 or 2019, or of CIFAR-10 or CIFAR-100, as downloaded. `split` takes train/
    or val/ of a folder that has both, train-*.tar or val-*.tar of a folder of shards, and the training or validation
    images of the rest. In an object store (s3://, gs://, file://) it has to be shards. `category` is the level of
    iNaturalist's taxonomy. `open_shards` takes the shards found. Raises DataError, and StorageError where the storage
    goes on failing.
    """
    asked = Request(uri, Path(uri).expanduser(), split, category, open_shards)
    try:
        source, form = patiently(lambda: _open(asked), uri)
    except OSError as error:
        raise DataError(f"{error.filename or uri}: expected a readable folder ({error.strerror or error})") from None
    if category != "name" and not form.has_taxonomy:
        raise DataError(f"data.category={category!r}: expected iNaturalist's annotations, {uri} has none")
    return source


def find_validation(uri: str) -> str | None:
    """The validation split beside the training split that `uri` names or holds: val/ or val-*.tar, else None.

    The folder of a data set as downloaded holds its own.
    """
    path = Path(uri).expanduser()

    def find() -> str | None:
        request = Request(uri, path, "train", "name", TarShards).at(path, "train")
        form = _recognise(request, general=False)
        return form.find_validation(request) if form else validation_beside(request)

    return patiently(find, uri)


def _open(asked: Request) -> tuple[Source, SourceFormat]:
    request = asked.at(asked.path, asked.split)
    form = _recognise(request, general=False)
    if form is None:
        request = _enter_split(request)
        form = _recognise(request, general=False) or _recognise(request, general=True)
    if form is not None:
        return form.open(request), form
    if request.path.is_file():
        raise DataError(
            f"{request.uri}: expected a folder of images or .tar shards, found a file named *{request.path.suffix}"
        )
    raise DataError(f"{request.uri}: expected a local folder of images or .tar shards, found nothing there")


def _enter_split(request: Request) -> Request:
    """The request at the folder of its split, where there is one. Raises DataError where none of two was asked for."""
    split, folder = request.split, request.path
    if {"train", "val"} <= request.folders and split is None:
        raise DataError(
            f"{request.uri}: expected one split, found train/ and val/; name {folder / 'train'} or {folder / 'val'}"
        )
    lone = request.folders == {"train"} and split == "train"
    if split is not None and (lone or {"train", "val"} <= request.folders):
        return request.at(folder / split, None)
    return request


def _recognise(request: Request, general: bool) -> SourceFormat | None:
    """The format that claims the place. Raises DataError where several do."""
    formats = discover("deit_fast.data.sources", "SOURCE", SourceFormat)
    found = [name for name, each in formats.items() if each.general == general and each.recognises(request)]
    if len(found) > 1:
        raise DataError(f"{request.uri}: expected one kind of data set, found {' and '.join(found)}")
    return formats[found[0]] if found else None
