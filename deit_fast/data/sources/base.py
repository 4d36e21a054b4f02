"""`Source`, what every data set is to the rest: encoded images with a class each, sizes known without decoding."""

import io
import os
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from deit_fast.runtime.errors import DataError, one_line, printable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 178_956_970
"""Largest image taken, pixels: what PIL calls a decompression bomb."""

UNIDENTIFIED = "no image format is like that"
_MAX_BYTES = 2**30  # of a file

_SIGNATURES = {
    "JPEG": (b"\xff\xd8",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "BMP": (b"BM",),
    "WEBP": (b"RIFF",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "PPM": (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
}
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15 without the tables that share the range
_BARE_MARKERS = frozenset(range(0xD0, 0xD8)) | {0x01}  # markers with no length behind them
_END = b"\xff\xd9"


class Source(ABC):
    """N encoded images with a class each. Reading is safe from several threads.

    uri: the place as the user wrote it. classes: names of the K classes. labels: int64 [N], indices into classes.
    """

    def __init__(self, uri: str, classes: list[str], labels: NDArray[np.int64]) -> None:
        self.uri = uri
        self.place = uri
        """Which images were taken: the folder of a split, say, where `uri` holds several."""
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
        """Image `index` as stored, encoded: uint8 [bytes], read-only. Raises DataError where it cannot be read."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where image `index` is, for people: a path, or archive:member; it ends in the suffix of its encoding."""

    def size(self, index: int, encoded: NDArray[np.uint8]) -> tuple[int, int]:
        """Height and width, px, of image `index`, whose file is `encoded`, uint8 [bytes]; read once, then remembered.

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
    """A file's bytes, uint8 [n]: `size` of them from byte `offset` on, fewer where the file ends; or the whole file.

    They are read, not mapped, so that waiting for a disk holds no lock. Raises DataError, also for more than 1 GiB.
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


def check_image(source: Source, index: int, encoded: NDArray[np.uint8]) -> tuple[int, int]:
    """Height and width by the image's header, px, before anything is allocated. encoded: uint8 [bytes].

    Raises DataError beyond MAX_PIXELS, and for what `image_size` does not take.
    """
    height, width = source.size(index, encoded)
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{printable(source.name(index))}: expected at most {MAX_PIXELS} pixels, its header says {height} x {width}"
        )
    return height, width


def image_format(encoded: NDArray[np.uint8]) -> str | None:
    """PIL's name of the format, by the first bytes of encoded uint8 [bytes], whatever the file is called.

    None for a format that is not taken.
    """
    start = encoded[:8].tobytes()
    return next((name for name, signatures in _SIGNATURES.items() if start.startswith(signatures)), None)


def image_size(encoded: NDArray[np.uint8]) -> tuple[int, int]:
    """Height and width in pixels as stored, by the header of encoded uint8 [bytes]: an EXIF rotation is not applied.

    Nothing is decoded. JPEG (ITU T.81, annex B) is read here, anything else by PIL. Raises ValueError where there is no
    header to read, and for a JPEG without an end: from it DALI decodes some windows and not others.
    """
    if image_format(encoded) is None:
        raise ValueError(f"{len(encoded)} bytes without a readable image header (no {', '.join(_SIGNATURES)})")
    data = encoded.data
    frame = _jpeg_frame(data)
    if frame is None:
        return _pil_size(encoded)
    if data[-2:] != _END and _END not in data[frame:].tobytes():
        raise ValueError(f"{len(data)} bytes of a JPEG whose end is missing")
    height, width = (data[at] << 8 | data[at + 1] for at in (frame + 5, frame + 7))
    return height, width


def open_image(encoded: NDArray[np.uint8]) -> Image.Image:
    """PIL's image of encoded uint8 [bytes], not yet decoded, by the parsers of the formats taken alone.

    Raises what PIL's parsers do.
    """
    return Image.open(io.BytesIO(encoded.data), formats=tuple(_SIGNATURES))


def _jpeg_frame(data: memoryview) -> int | None:
    """Where the frame header starts; None for anything but a plain JPEG, such as one with the height after its scan."""
    if data[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _BARE_MARKERS:
            position += 2
        elif marker in _FRAME_MARKERS:
            sized = any(data[position + 5 : position + 7]) and any(data[position + 7 : position + 9])
            return position if sized else None
        else:
            position += 2 + (data[position + 2] << 8 | data[position + 3])
    return None


def _pil_size(data: NDArray[np.uint8]) -> tuple[int, int]:
    try:
        with open_image(data) as image:
            width, height = image.size
    except Exception as error:  # PIL's parsers raise what they like
        reason = UNIDENTIFIED if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise ValueError(f"{len(data)} bytes without a readable image header ({reason})") from None
    if not (height > 0 and width > 0):
        raise ValueError(f"{len(data)} bytes whose header says {height} x {width} pixels")
    return height, width
