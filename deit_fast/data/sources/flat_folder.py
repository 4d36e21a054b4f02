"""A folder of images without class folders, as validation sets are published: ImageNet's, Tiny-ImageNet's."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source, read_bytes
from deit_fast.data.sources.classes import are_numbers, order_classes
from deit_fast.data.sources.folder_walk import is_image, list_images
from deit_fast.data.sources.label_files import EXPECTED, find_label_file, read_labels
from deit_fast.data.sources.samples import MAX_CLASSES
from deit_fast.data.sources.source_format import Request, SourceFormat
from deit_fast.runtime.errors import DataError

IMAGES_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "jpg")
"""What a folder of images is called that is no class: in lower case."""


class FlatFolder(Source):
    """The images in one folder, in the order of their names, with the classes that a file of labels gives them.

    Classes that the file names are in the order of their names, as class folders would be; numbers from 0 on are the
    labels. Raises DataError where there is no such file, and for one that does not fit.
    """

    def __init__(self, uri: str, folder: Path, labels: Path | None) -> None:
        self._paths = list_images(str(folder))
        path = labels or find_label_file(folder)
        if path is None:
            raise DataError(
                f"{folder}: expected a folder of images for every class, found {len(self._paths)} images and no file "
                f"of their labels in it or beside it; name one with --labels FILE: {EXPECTED}"
            )
        names = read_labels(path, str(folder), [os.path.relpath(each, folder) for each in self._paths])
        classes = order_classes(set(names))
        if all(name.isascii() and name.isdigit() and int(name) < MAX_CLASSES for name in names):
            classes = [str(label) for label in range(max(map(int, names)) + 1)]
            numbers = [int(name) for name in names]
        else:
            label_of = {name: label for label, name in enumerate(classes)}
            numbers = [label_of[name] for name in names]
        super().__init__(uri, classes, np.array(numbers, np.int64))
        self.counted = are_numbers(classes)
        self.place = f"{folder}, labels of {path}"

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as stored, uint8 [bytes]. Raises DataError where its file cannot be read."""
        return read_bytes(self._paths[index])

    def name(self, index: int) -> str:
        return self._paths[index]


def find_flat(request: Request) -> Path | None:
    """The folder that holds images and no folders: the place, or its only folder where that is called images.

    None where there is no such folder, or tar shards beside the images.
    """
    if any(name.endswith(".tar") for name in request.files):
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
