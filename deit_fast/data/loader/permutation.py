"""The full shuffle of an epoch: of a large set one file that all processes of a machine map, not an array in each."""

import contextlib
import time
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deit_fast.runtime.files import atomic_path, cache_folder, exclusive
from deit_fast.runtime.philox import Stream, generator

_SHARED = 2**22  # images from which on they are shared; below, a process's own array is 16 MiB at most
_CHUNK = 2**20  # images written at once
_LEFT_SECONDS = 24 * 3600  # after which an order that some other run left behind is removed


def epoch_permutation(num_images: int, seed: int, epoch: int) -> NDArray[np.uint32]:
    """The images of an epoch, shuffled by (seed, epoch), uint32 [num_images].

    A large one is mapped from a file of the cache folder, which the first process of a machine makes while the others
    wait. Where the folder cannot be written, or its disk is full, each process has its own array.
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
        except OSError:  # the folder is a help, and no more
            found = None
    if found is not None:
        return found
    return (_shuffle(num_images, seed, epoch) if images is None else images).astype(np.uint32)


def _shuffle(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return generator(seed, Stream.ORDER, epoch).permutation(num_images)


def _write(path: Path, images: NDArray[np.int64]) -> None:
    """The images as uint32, and after them their CRC-32: a file that a crash or a disk damaged is made anew."""
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
    except (OSError, ValueError):  # the latter for a size that is none
        return None
    whole = len(mapped) == num_images + 1 and zlib.crc32(mapped[:-1].data) == mapped[-1]
    return mapped[:-1] if whole else None


def _remove_others(path: Path) -> None:
    """Removes this order's other epochs, and what was left behind. Who has mapped a file keeps it."""
    own = path.name.rpartition("-")[0]
    for other in path.parent.glob("*.order"):
        with contextlib.suppress(OSError):
            if other.name.rpartition("-")[0] == own or other.stat().st_mtime < time.time() - _LEFT_SECONDS:
                other.unlink()
    for left in path.parent.glob(".*.order.*.tmp"):  # of a process killed while it wrote: the lock is held
        with contextlib.suppress(OSError):
            left.unlink()
