"""Walks a folder: its images at any depth, without hidden files and folders, and each folder of the disk once."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from deit_fast.data.sources.base import IMAGE_SUFFIXES
from deit_fast.data.sources.hidden import is_hidden


class Walked(NamedTuple):
    """A folder that the walk met: its path, its state before it was read, and the names of its images in order."""

    path: str
    status: os.stat_result
    images: list[str]

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode, which tell whether two paths are the same folder."""
        return self.status.st_dev, self.status.st_ino


def walk_images(folder: str) -> Iterator[Walked]:
    """The folder and all folders below it, in no particular order. Links are followed, each folder is met once.

    Raises OSError where a folder cannot be read.
    """
    met: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        status = os.stat(path)  # before listing: a change during the listing then makes another time
        if (status.st_dev, status.st_ino) in met:
            continue
        folders, images = _list(path)
        walked = Walked(path, status, images)
        met.add(walked.identity)
        waiting += reversed(folders)
        yield walked


def _list(path: str) -> tuple[list[str], list[str]]:
    """Paths of the folders in a folder, real ones before links, and the names of its images."""
    folders, images = list[tuple[bool, str]](), list[str]()
    with os.scandir(path) as entries:
        for entry in entries:
            if _is_folder(entry):  # by the directory entry: no system call per file
                if not is_hidden(entry.name):
                    folders.append((entry.is_symlink(), entry.path))
            elif is_image(entry.name):
                images.append(entry.name)
    return [path for _, path in sorted(folders)], sorted(images)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def list_images(folder: str) -> list[str]:
    """Paths of the images below a folder, by folder and then by name. Raises OSError where a folder cannot be read."""
    return join_images(walk_images(folder))


def join_images(walked: Iterator[Walked] | list[Walked]) -> list[str]:
    """Paths of the images in the folders walked, by folder and then by name."""
    return [os.path.join(each.path, name) for each in in_order(walked) for name in each.images]


def in_order(walked: Iterator[Walked] | list[Walked]) -> list[Walked]:
    """The folders sorted by path."""
    return sorted(walked, key=lambda each: each.path)


def has_images(folder: str | os.PathLike[str]) -> bool:
    """Whether there is an image in the folder itself. Raises OSError where the folder cannot be read."""
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) and not entry.is_dir() for entry in entries)


def is_image(name: str) -> bool:
    """Whether a file with this name counts as an image."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)
