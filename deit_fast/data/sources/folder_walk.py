"""What is in a folder: its images at any depth, whatever is hidden left out, and every folder of the disk once."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from deit_fast.data.sources.base import IMAGE_SUFFIXES
from deit_fast.data.sources.hidden import is_hidden


class Walked(NamedTuple):
    """A folder met on the way: its path, its state before it was read, and the names of its images in order."""

    path: str
    status: os.stat_result
    images: list[str]

    @property
    def identity(self) -> tuple[int, int]:
        """Which folder of the disk it is."""
        return self.status.st_dev, self.status.st_ino


def walk_images(folder: str) -> Iterator[Walked]:
    """The folder and those below it, in no order; a link is followed, but to no folder that was met already.

    Raises OSError where one cannot be read.
    """
    met: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        status = os.stat(path)  # first, so that whatever changes while it is read makes another time
        if (status.st_dev, status.st_ino) in met:
            continue
        folders, images = _list(path)
        walked = Walked(path, status, images)
        met.add(walked.identity)
        waiting += reversed(folders)
        yield walked


def _list(path: str) -> tuple[list[str], list[str]]:
    """Paths of the folders in a folder, those by their own name before those by links, and names of its images."""
    folders, images = list[tuple[bool, str]](), list[str]()
    with os.scandir(path) as entries:
        for entry in entries:
            if _is_folder(entry):  # by the folder's own entry: no call per file
                if not is_hidden(entry.name):
                    folders.append((entry.is_symlink(), entry.path))
            elif is_image(entry.name):
                images.append(entry.name)
    return [path for _, path in sorted(folders)], sorted(images)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def list_images(folder: str) -> list[str]:
    """Paths of the images below a folder, by folder and then by name. Raises OSError where one cannot be read."""
    return join_images(walk_images(folder))


def join_images(walked: Iterator[Walked] | list[Walked]) -> list[str]:
    """Paths of the images in the folders met, by folder and then by name."""
    return [os.path.join(each.path, name) for each in in_order(walked) for name in each.images]


def in_order(walked: Iterator[Walked] | list[Walked]) -> list[Walked]:
    """By the folders' paths."""
    return sorted(walked, key=lambda each: each.path)


def has_images(folder: str | os.PathLike[str]) -> bool:
    """Whether there is an image in the folder itself. Raises OSError where it cannot be read."""
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) and not entry.is_dir() for entry in entries)


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)
