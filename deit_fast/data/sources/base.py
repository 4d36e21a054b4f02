"""What every data set is to the rest: encoded images with a class each."""

import os
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.header import image_size
from deit_fast.runtime.errors import DataError, printable

_MAX_BYTES = 2**30


class Source(ABC):
    """N encoded images with a class each. Reading is safe from several threads."""

    def __init__(self, uri: str, classes: list[str], labels: NDArray[np.int64]) -> None:
        self.uri = uri
        self.classes = classes
        self.labels = labels
        """int64 [N], indices into classes."""
        self.counted = False
        """Whether the classes are only as many as the largest label says, so that there may be more."""
        self._sizes = np.zeros((len(labels), 2), np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> NDArray[np.uint8]:
        """The bytes of image `index`, encoded as stored; read-only. Raises DataError where it cannot be read."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where image `index` is, for people: a path, or archive:member; it ends in the suffix of its encoding."""

    def size(self, index: int, encoded: NDArray[np.uint8]) -> tuple[int, int]:
        """Height and width in pixels of image `index`, whose bytes are `encoded`; read once, then remembered.

        As stored: an EXIF rotation is not applied. Raises DataError where the header cannot be read.
        """
        height, width = self._sizes[index].tolist()
        if not height:
            try:
                height, width = image_size(encoded)
            except ValueError as error:
                raise DataError(f"{printable(self.name(index))}: expected an image, found {error}") from None
            self._sizes[index] = height, width
        return height, width


def read_bytes(path: str, offset: int = 0, size: int | None = None) -> NDArray[np.uint8]:
    """`size` bytes from `offset`, or the whole file. Read, not mapped, so that waiting for a disk holds no lock.

    Fewer come back where the file ends before. Raises DataError, also for more than 1 GiB.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe's reader would else wait for its writer
        try:
            wanted = os.fstat(descriptor).st_size if size is None else size
            data = os.pread(descriptor, wanted, offset) if wanted <= _MAX_BYTES else None
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(f"{printable(path)}: expected a readable file ({error.strerror})") from None
    if data is None:
        raise DataError(f"{printable(path)}: expected at most {_MAX_BYTES} bytes, found {wanted}")
    return np.frombuffer(data, np.uint8)
