"""A folder of images without class folders, the form in which ImageNet's and Tiny-ImageNet's validation sets come."""

import os
from pathlib import Path

import numpy as np

from deit_fast.data.sources.classes import are_numbers, order_classes
from deit_fast.data.sources.folder_walk import in_order, is_image, walk_images
from deit_fast.data.sources.kept_listing import Watched, keep_listing
from deit_fast.data.sources.label_files import EXPECTED, find_label_file, label_files, read_labels
from deit_fast.data.sources.listed_files import ListedFiles
from deit_fast.data.sources.listing import Listing, ListingBuilder
from deit_fast.data.sources.samples import MAX_CLASSES
from deit_fast.data.sources.source_format import Request, SourceFormat
from deit_fast.runtime.errors import DataError

IMAGES_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "jpg")
"""Names, in lower case, of folders that hold images and are no class."""


class FlatFolder(ListedFiles):
    """The images of one folder, in the order of their names, with the classes that a file of labels gives them.

    Class names in that file are ordered by name, like class folders; numbers from 0 on are the labels themselves.
    Raises DataError where the file of labels is missing or does not fit the images.
    """

    def __init__(self, uri: str, folder: Path, labels: Path | None) -> None:
        path = labels or find_label_file(folder)
        kind = f"labels of {os.path.abspath(path)}" if path is not None else "no labels"
        super().__init__(uri, folder, keep_listing(folder, kind, lambda watched: _list(folder, path, watched)))
        self.counted = are_numbers(self.classes)
        self.place = f"{folder}, labels of {path}"


def _list(folder: Path, path: Path | None, watched: Watched) -> Listing:
    """Walks the folder and reads the file of labels at `path`. Raises DataError where they do not fit together."""
    listing, names = ListingBuilder(), list[str]()
    for each in in_order(walk_images(str(folder))):
        inside = os.path.relpath(each.path, folder)
        inside = "" if inside == "." else inside
        watched.add(inside, each.status)
        listing.add(inside, each.images)
        names += [os.path.join(inside, name) for name in each.images]
    if path is None:
        raise DataError(
            f"{folder}: expected a folder of images for every class, found {len(names)} images and no file of their "
            f"labels in it or beside it; name one with --labels FILE: {EXPECTED}"
        )
    for file in label_files(path):
        watched.add(os.path.abspath(file), file.stat())
    given = read_labels(path, str(folder), names)
    classes = order_classes(set(given))
    if all(name.isascii() and name.isdigit() and int(name) < MAX_CLASSES for name in given):
        classes = [str(label) for label in range(max(map(int, given)) + 1)]
        numbers = [int(name) for name in given]
    else:
        label_of = {name: label for label, name in enumerate(classes)}
        numbers = [label_of[name] for name in given]
    return listing.finish(np.array(numbers, np.int64), classes)


def find_flat(request: Request) -> Path | None:
    """The folder that holds images and no folders: the place itself, or its only folder if that is named like "images".

    None where there is no such folder, or where tar shards stand beside the images.
    """
    if request.place.shards:
        return None
    if not request.folders and any(is_image(name) for name in request.files):
        return request.path
    if len(request.folders) == 1 and not any(is_image(name) for name in request.files):
        (name,) = request.folders
        if name.casefold() in IMAGES_FOLDERS and request.holds_images(name):
            return request.path / name
    return None


def _open(request: Request) -> FlatFolder:
    folder = find_flat(request)
    assert folder is not None
    return FlatFolder(request.uri, folder, request.labels)


SOURCE = SourceFormat(
    recognises=lambda request: find_flat(request) is not None, open=_open, general=True, takes_labels=True
)
