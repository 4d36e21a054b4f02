"""What is in a folder: its images at any depth, whatever is hidden left out, and every folder of the disk once."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from deit_fast.data.sources.base import IMAGE_SUFFIXES
from deit_fast.data.sources.hidden import is_hidden


class Walked(NamedTuple):
    """A folder met on the way: its path, which folder of the disk it is, and the names of its images in order."""

    path: str
    identity: tuple[int, int]
    images: list[str]


def walk_images(folder: str) -> Iterator[Walked]:
    """The folder and those below it, in no order; a link is followed, but to no folder that was met already.

    Raises OSError where one cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    met: set[tuple[int, int]] = set()
    # os.walk, unlike Path.stat, learns what an entry is from its directory: no call per file.
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(root)
        identity = status.st_dev, status.st_ino
        if identity in met:
            folders.clear()
            continue
        met.add(identity)
        seen = sorted(name for name in folders if not is_hidden(name))
        folders[:] = sorted(
            seen, key=lambda name: os.path.islink(os.path.join(root, name))
        )  # folders by their own name
        yield Walked(root, identity, sorted(name for name in files if is_image(name)))


def list_images(folder: str) -> list[str]:
    """Paths of the images below a folder, by folder and then by name. Raises OSError where one cannot be read."""
    return join_images(walk_images(folder))


def join_images(walked: Iterator[Walked] | list[Walked]) -> list[str]:
    """Paths of the images in the folders met, by folder and then by name."""
    return [os.path.join(each.path, name) for each in sorted(walked) for name in each.images]


def has_images(folder: str | os.PathLike[str]) -> bool:
    """Whether there is an image in the folder itself. Raises OSError where it cannot be read."""
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) and not entry.is_dir() for entry in entries)


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)
