"""The full shuffle of an epoch.

For a large set it is one file that all processes of a machine map, not one array each.
"""

import contextlib
import time
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deit_fast.runtime.files import atomic_path, cache_folder, exclusive
from deit_fast.runtime.philox import Stream, generator

_SHARED = 2**22  # number of images from which a file is shared; below it, a process's own array has 16 MiB at most
_CHUNK = 2**20  # images that are written at a time
_LEFT_SECONDS = 24 * 3600  # age after which an order that another run left behind is removed


def epoch_permutation(num_images: int, seed: int, epoch: int) -> NDArray[np.uint32]:
    """The images of an epoch, shuffled by (seed, epoch), uint32 [num_images].

    A large permutation is mapped from a file in the cache folder. The first process of a machine makes the file while
    the others wait. If the folder cannot be written, or its disk is full, each process makes its own array.
    """
    if num_images < _SHARED:
        return _shuffle(num_images, seed, epoch).astype(np.uint32)
    folder = cache_folder() / "orders"
    path = folder / f"{num_images}-{seed & 0xFFFFFFFFFFFFFFFF:x}-{epoch}.order"
    found, images = _map(path, num_images), None
    if found is None:
        try:
            with exclusive(folder / ".lock"):
                found = _map(path, num_images)
                if found is None:
                    images = _shuffle(num_images, seed, epoch)
                    _remove_others(path)
                    _write(path, images)
                    found = _map(path, num_images)
        except OSError:  # works without the file too
            found = None
    if found is not None:
        return found
    return (_shuffle(num_images, seed, epoch) if images is None else images).astype(np.uint32)


def _shuffle(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return generator(seed, Stream.ORDER, epoch).permutation(num_images)


def _write(path: Path, images: NDArray[np.int64]) -> None:
    """Writes the images as uint32, followed by their CRC-32, so that a damaged file is recognised and made anew."""
    check = 0
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        for start in range(0, len(images), _CHUNK):
            part = images[start : start + _CHUNK].astype(np.uint32)
            check = zlib.crc32(part.data, check)
            file.write(part.data)
        file.write(np.uint32(check).tobytes())


def _map(path: Path, num_images: int) -> NDArray[np.uint32] | None:
    try:
        mapped = np.asarray(np.memmap(path, np.uint32, "r"))
    except (OSError, ValueError):  # ValueError: a wrong size
        return None
    whole = len(mapped) == num_images + 1 and zlib.crc32(mapped[:-1].data) == mapped[-1]
    return mapped[:-1] if whole else None


def _remove_others(path: Path) -> None:
    """Removes other epochs of this order, and files left behind. Processes that have mapped a file keep it."""
    own = path.name.rpartition("-")[0]
    for other in path.parent.glob("*.order"):
        with contextlib.suppress(OSError):
            if other.name.rpartition("-")[0] == own or other.stat().st_mtime < time.time() - _LEFT_SECONDS:
                other.unlink()
    for left in path.parent.glob(".*.order.*.tmp"):  # left by killed processes: this one holds the lock
        with contextlib.suppress(OSError):
            left.unlink()
