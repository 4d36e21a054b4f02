"""A folder with a folder of images for every class."""

import os
from collections import Counter
from pathlib import Path

import numpy as np

from deit_fast.data.sources.base import IMAGE_SUFFIXES
from deit_fast.data.sources.classes import one_form, order_classes
from deit_fast.data.sources.flat_folder import IMAGES_FOLDERS, find_flat
from deit_fast.data.sources.folder_walk import Walked, in_order, is_image, walk_images
from deit_fast.data.sources.hidden import is_hidden
from deit_fast.data.sources.kept_listing import Watched, keep_listing
from deit_fast.data.sources.listed_files import ListedFiles
from deit_fast.data.sources.listing import Listing, ListingBuilder
from deit_fast.data.sources.source_format import Request, SourceFormat
from deit_fast.data.sources.splits import group_by_split
from deit_fast.runtime.errors import DataError, printable
from deit_fast.runtime.progress import progress

_ANNOTATIONS = {
    "annotation", "annotations", "anno", "bbox", "bboxes", "ground_truth", "groundtruth", "label", "labels", "mask",
    "masks", "meta", "segmentation", "segmentations", "trimaps",
}  # fmt: skip


class ImageFolder(ListedFiles):
    """folder/class/**/image.jpg, in torchvision's order: classes by name, then images by folder and name.

    Hidden files and folders are left out. A folder that a second link reaches within one class counts once; a folder
    that two classes reach is refused. Class folders named 0 to K - 1 are ordered by number.
    """

    def __init__(self, uri: str, folder: Path) -> None:
        super().__init__(uri, folder, keep_listing(folder, "class folders", lambda watched: _list(folder, watched)))

    def _inner(self, folder: str) -> str:
        """Leaves out the class's folder, so that an image moved to another class counts as the same, relabelled."""
        return folder[len(self._path_of("")) :].partition("/")[2]


def _list(folder: Path, watched: Watched) -> Listing:
    """Walks all class folders. Raises DataError where `folder` is no folder of class folders with images."""
    watched.add("", os.stat(folder))
    classes = order_classes(_class_folders(folder))
    if not classes:
        raise DataError(f"{folder}: expected a folder of images for every class, or .tar shards; found neither")
    listing, counts = ListingBuilder(), []
    met: dict[tuple[int, int], tuple[str, str]] = {}  # identity of each folder on the disk -> its class and path
    for name in progress(classes, len(classes), "class folders listed"):
        before = listing.count
        walked = in_order(walk_images(os.path.join(folder, name)))
        _refuse_splits_inside(folder / name, walked)
        for each in walked:
            other, path = met.setdefault(each.identity, (name, each.path))
            if other != name:
                raise DataError(
                    f"{printable(each.path)}: expected images of one class, this folder is reached from class "
                    f"{printable(other)} too, through a link, as {printable(path)}"
                )
            inside = os.path.relpath(each.path, folder)
            watched.add(inside, each.status)
            listing.add(inside, each.images)
        if listing.count == before:
            raise DataError(
                f"{folder / name}: expected images ({', '.join(IMAGE_SUFFIXES)}) in every class folder, none found"
            )
        if len(classes) == 1 and not walked[0].images:
            raise DataError(
                f"{folder}: expected a folder of images for every class, found {name}/ alone, which holds folders; "
                f"name {folder / name}"
            )
        counts.append(listing.count - before)
    return listing.finish(np.repeat(np.arange(len(classes)), counts), classes)


def _class_folders(folder: Path) -> list[str]:
    """Names of the class folders. Raises DataError for a broken link, because its class would be missing."""
    names = []
    for entry in os.scandir(folder):
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            names.append(entry.name)
        elif entry.is_symlink() and not entry.is_file() and not is_image(entry.name):
            raise DataError(f"{printable(entry.path)}: expected a folder of images, found a link to nothing")
    _refuse_annotations(folder, names)
    if len(set(one_form(names))) < len(names):
        twice = next(name for name, count in Counter(one_form(names)).items() if count > 1)
        raise DataError(f"{folder}: expected every class once, {twice!r} is there in two forms of Unicode")
    return names


def _refuse_annotations(folder: Path, names: list[str]) -> None:
    """Raises DataError where the folders are images and annotations: masks are image files too, but are no class."""
    images = [name for name in names if name.casefold() in IMAGES_FOLDERS]
    others = [name for name in names if name.casefold() in _ANNOTATIONS]
    if images and others and len(images) + len(others) == len(names):
        raise DataError(
            f"{folder}: expected a folder of images for every class, found {images[0]}/ beside {others[0]}/; "
            f"name {folder / images[0]}"
        )


def _refuse_splits_inside(folder: Path, walked: list[Walked]) -> None:
    """Raises DataError where a class folder holds splits: training would include its validation images."""
    inside = {os.path.basename(each.path) for each in walked if os.path.dirname(each.path) == str(folder)}
    splits = group_by_split(inside)
    if len(splits) > 1:
        names = " and ".join(f"{name}/" for each in splits.values() for name in each)
        raise DataError(f"{printable(str(folder))}: expected images of one class, found splits in it, {names}")


def _recognises(request: Request) -> bool:
    """Takes any folder: one that no other kind recognises is refused with this kind's message."""
    return request.path.is_dir() and not request.place.shards and find_flat(request) is None


SOURCE = SourceFormat(
    recognises=_recognises,
    open=lambda request: ImageFolder(request.uri, request.path),
    general=True,
)
