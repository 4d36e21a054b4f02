"""A folder of images for every class."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import IMAGE_SUFFIXES, Source, read_bytes
from deit_fast.data.sources.classes import order_classes
from deit_fast.data.sources.source_format import SourceFormat
from deit_fast.runtime.errors import DataError


class ImageFolder(Source):
    """folder/class/**/image.jpg, in torchvision's order: classes by name, then images by folder and name.

    Class folders named 0 to K - 1 are in the order of the numbers.
    """

    def __init__(self, uri: str, folder: Path) -> None:
        classes = order_classes(entry.name for entry in os.scandir(folder) if entry.is_dir())
        if not classes:
            raise DataError(f"{folder}: expected a folder of images for every class, or .tar shards; found neither")
        self._folder = str(folder)
        self._paths: list[str] = []
        counts = []
        for name in classes:
            paths = list_images(os.path.join(folder, name))
            if not paths:
                raise DataError(
                    f"{folder / name}: expected images ({', '.join(IMAGE_SUFFIXES)}) in every class folder, none found"
                )
            self._paths += paths
            counts.append(len(paths))
        super().__init__(uri, classes, np.repeat(np.arange(len(classes)), counts))

    def relative_names(self) -> list[str]:
        """Paths of the N images in their class folders: one that is moved to another class is a relabelled one."""
        starts = [len(os.path.join(self._folder, name, "")) for name in self.classes]
        return [path[starts[label] :] for path, label in zip(self._paths, self.labels.tolist(), strict=True)]

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as stored, uint8 [bytes]. Raises DataError where its file cannot be read."""
        return read_bytes(self._paths[index])

    def name(self, index: int) -> str:
        return self._paths[index]


def list_images(folder: str) -> list[str]:
    """Paths of the images below a folder, by folder and then by name. Raises OSError where one cannot be read."""

    def refuse(error: OSError) -> None:
        raise error

    # os.walk, unlike Path.stat, learns what an entry is from its directory: no call per file.
    walked = sorted((root, files) for root, _, files in os.walk(folder, onerror=refuse, followlinks=True))
    return [
        os.path.join(root, name)
        for root, files in walked
        for name in sorted(files)
        if name.lower().endswith(IMAGE_SUFFIXES)
    ]


# Any folder: one that is none of another kind either is refused in the words of this one.
SOURCE = SourceFormat(
    recognises=lambda request: request.path.is_dir() and not any(name.endswith(".tar") for name in request.files),
    open=lambda request: ImageFolder(request.uri, request.path),
    general=True,
)
