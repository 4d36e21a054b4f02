"""`open_source`, the way to labelled images as they are stored: folders, tar shards, data sets as downloaded.

Every format of this folder is asked whether it recognises a place (source_format.py). Formats that recognise a place by
files of their own are asked first. If none does and the place has a folder for the split, that folder is the place that
all formats are asked about instead. A place that two formats recognise is an error.
"""

from pathlib import Path
from typing import Protocol

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.image_list import ImageList, is_list
from deit_fast.data.sources.place import FILE_SUFFIXES, find_place, split_place, told_as_data_errors
from deit_fast.data.sources.source_format import (
    OpenShards,
    Request,
    SourceFormat,
    find_split_folders,
    validation_beside,
)
from deit_fast.data.sources.splits import Split, refuse_split_like, split_of, split_of_shard, take_split
from deit_fast.data.sources.tar_shards import TarShards
from deit_fast.runtime.discover import discover
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.object_store import is_remote, is_web, without_query
from deit_fast.runtime.patience import patiently


def open_source(
    uri: str,
    split: Split | None = None,
    category: str = "name",
    open_shards: OpenShards = TarShards,
    labels: str | Path | None = None,
) -> Source:
    """Opens labelled images. Only directories, shard indexes, labels and annotations are read (and CIFAR, as a whole).

    uri: a folder of class folders, a folder of .tar shards, one .tar, a brace range (train-{0000..0009}.tar) or a glob
    of shards, or the folder of iNaturalist 2018 or 2019, or of CIFAR-10 or CIFAR-100, as downloaded. It may also be a
    list of images (image_list.py), which opens these images alone. In a store (s3://, gs://, hf://, http://, https://,
    file://) it has to be shards. A web server cannot list a folder: there the URI is a range of shards, the folder of
    an index, or the index itself (SPLIT.index.json).
    split: takes the folder (train/, val/, ...) or the shards (train-*.tar, val-*.tar, ...) with the split's name, or
    the training or validation images of a data set as downloaded. A place that has other splits alone is refused.
    category: the level of iNaturalist's taxonomy. open_shards: opens the shards that were found. labels: the file of
    labels of a folder without class folders; by default, a file with one of the usual names (label_files.py).

    Raises DataError, and StorageError where the storage goes on failing.
    """
    file = Path(labels) if labels else None
    if is_list(uri):
        with told_as_data_errors(uri):
            return patiently(lambda: ImageList.read(uri), uri).open(open_source, without_query(uri))

    def open_place() -> tuple[Source, SourceFormat]:
        return _open(Request(without_query(uri), find_place(uri), split, category, open_shards, file))

    with told_as_data_errors(uri):
        source, form = patiently(open_place, uri)
    if category != "name" and not form.has_taxonomy:
        raise DataError(f"data.category={category!r}: expected iNaturalist's annotations, {uri} has none")
    if labels is not None and not form.takes_labels:
        raise DataError(
            f"--labels {labels}: expected a folder of images without class folders, {uri} has its own labels"
        )
    return source


def find_validation(uri: str) -> str | None:
    """The validation split beside the training split that `uri` names or holds: a folder or a glob of shards.

    Folders are val/, valid/, validation/, eval/ and evaluation/; shards have such a word in their names. For a data set
    as downloaded, it is the data set's own folder. None where there is no validation split. Raises DataError where
    there are several.
    """

    def find() -> str | None:
        if is_list(uri):
            return None
        request = Request(without_query(uri), find_place(uri), "train", "name", TarShards)
        form = _recognise(request, general=False)
        return form.find_validation(request) if form else validation_beside(request)

    with told_as_data_errors(uri):
        return patiently(find, uri)


class _Open(Protocol):
    def __call__(self, uri: str, split: Split, *, labels: str | Path | None) -> Source: ...


def open_splits(uri: str, labels: str | Path | None, open_one: _Open = open_source) -> dict[Split, Source]:
    """The training images of a data set and, where they are found, its validation images.

    A place that is a validation split is returned as that split alone. labels: as in `open_source`, for the validation
    images, or for all images where there is no validation split. Raises DataError.
    """
    val = find_validation(uri)
    source = open_one(uri, "train", labels=labels if val is None else None)
    if val is not None:
        return {"train": source, "val": open_one(val, "val", labels=labels)}
    name = source.place.rstrip("/").rpartition("/")[2]
    return {"val" if "val" in (split_of(name), split_of_shard(name)) else "train": source}


def _open(request: Request) -> tuple[Source, SourceFormat]:
    form = _recognise(request, general=False)
    if form is None:
        request = _enter_split(request)
        form = _recognise(request, general=False) or _recognise(request, general=True)
    if form is not None:
        source = form.open(request)
        if source.place == source.uri and (request.files or request.folders):
            source.place = without_query(request.place.uri)
        return source, form
    is_file = split_place(request.place.uri)[1].endswith(FILE_SUFFIXES)
    if is_web(request.place.uri) and not is_file:
        raise DataError(
            f"{request.uri}: expected the index of tar shards (deit-fast data index), or a range such as "
            "train-{0000..0009}.tar, since a web server lists no folders; found none"
        )
    if is_remote(request.uri):
        made = " (deit-fast data shard makes them)"
        found = "no such object" if is_file else f"none in {without_query(request.place.uri)}"
        raise DataError(f"{request.uri}: expected .tar shards{made}, found {found}")
    if request.path.is_file():
        raise DataError(
            f"{request.uri}: expected a folder of images or .tar shards, found a file named *{request.path.suffix}"
        )
    raise DataError(f"{request.uri}: expected a local folder of images or .tar shards, found nothing there")


def _enter_split(request: Request) -> Request:
    """The request for the folder of its split, if the place has splits. Raises DataError where it lacks this one."""
    found = find_split_folders(request.place)
    if found:
        return request.enter(take_split(request.uri, found, request.split))
    refuse_split_like(request.uri, request.folders, request.holds_images)
    return request


def _recognise(request: Request, general: bool) -> SourceFormat | None:
    """The format that recognises the place. Raises DataError where several do."""
    formats = discover("deit_fast.data.sources", "SOURCE", SourceFormat)
    asked = {name: each for name, each in formats.items() if each.remote or not is_remote(request.uri)}
    found = [name for name, each in asked.items() if each.general == general and each.recognises(request)]
    if len(found) > 1:
        raise DataError(f"{request.uri}: expected one kind of data set, found {' and '.join(found)}")
    return formats[found[0]] if found else None
