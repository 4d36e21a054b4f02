"""`Source`, what every data set is to the rest: encoded images with a class each, sizes known without decoding."""

import errno
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from deit_fast.data.sources.pixels import UnknownPixels, as_decodable, check_kind, is_right_in_dali
from deit_fast.runtime.errors import DataError, one_line, printable
from deit_fast.runtime.patience import Pause, may_pass, patiently
from deit_fast.runtime.progress import progress

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 178_956_970
"""Largest image taken, pixels: what PIL calls a decompression bomb."""

UNIDENTIFIED = "no image format is like that"
_MAX_BYTES = 2**30  # of a file
_MAX_SIZED = 2_000_000  # files that are asked for their sizes
_SIZED_AT_ONCE = 10_000
_SIZERS = 8  # threads that do; a network's file system answers in a millisecond, a disk's cache in a microsecond

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
_ADOBE = b"\xff\xee\x00\x0eAdobe"


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
        self._is_converted = np.zeros(len(labels), bool)  # known once the size is

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as stored, encoded: uint8 [bytes], read-only. `read_image` calls it.

        Raises DataError for what is wrong with this one image, and OSError as it comes from the system.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """Where image `index` is, for people: a path, or archive:member; it ends in the suffix of its encoding."""

    def relative_names(self) -> list[str]:
        """The N images' names without the place where the data set lies, the same for every copy of it.

        Unless a kind of data set knows better, what `name` has beside the folder that is common to all images.
        """
        names = [self.name(index) for index in range(len(self))]
        alike = os.path.commonprefix([min(names), max(names)]) if names else ""  # noqa: RUF071 (names may be URIs too)
        return [name[alike.rfind("/") + 1 :] for name in names]

    def fingerprints(self) -> NDArray[np.int64]:
        """int64 [N, m], numbers that are others where an image is stored with other content; no image is read.

        Unless a kind of data set knows better, [N, 1], the sizes of the files that `name` names, bytes.
        """
        return file_sizes(self.name, len(self))[:, None]

    def size(self, index: int, encoded: NDArray[np.uint8]) -> tuple[int, int]:
        """Height and width, px, of image `index`, whose file is `encoded`, uint8 [bytes]; read once, then remembered.

        As stored: an EXIF rotation is not applied. Raises DataError where the header cannot be read, and for a kind of
        image that is refused.
        """
        height, width = self._sizes[index].tolist()
        if not height:
            try:
                height, width, right = _read_header(encoded)
            except ValueError as error:
                raise DataError(f"{printable(self.name(index))}: expected an image, found {error}") from None
            self._is_converted[index] = not right
            self._sizes[index] = height, width
        return height, width

    def prepare(self, index: int, encoded: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Image `index`, whose file is `encoded`, as DALI decodes it rightly, uint8 [bytes], and its height and width.

        That is the file itself, unless it is of a kind that DALI gets wrong. Raises DataError as `check_image` does,
        and where such a file cannot be decoded.
        """
        size = check_image(self, index, encoded)
        if not self._is_converted[index]:
            return encoded, size
        try:
            with open_image(encoded) as image:
                return as_decodable(encoded, image), size
        except Exception as error:  # PIL's decoders raise what they like
            reason = one_line(error) or type(error).__name__
            name = printable(self.name(index))
            raise DataError(f"{name}: expected an image that can be decoded ({reason})") from None


def read_bytes(path: str, offset: int = 0, size: int | None = None) -> NDArray[np.uint8]:
    """A file's bytes, uint8 [n]: `size` of them from byte `offset` on, fewer where the file ends; or the whole file.

    They are read, not mapped, so that waiting for a disk holds no lock. Raises DataError, also for more than 1 GiB, and
    OSError where it is the storage that fails: `read_image` and `open_source` try again then.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe's reader would else wait for its writer
        try:
            wanted = os.fstat(descriptor).st_size if size is None else size
            data = _read_all(descriptor, wanted, offset) if wanted <= _MAX_BYTES else None
        finally:
            os.close(descriptor)
    except OSError as error:
        if may_pass(error):
            raise
        if not _folder_stands(path):
            reason = f"{error.strerror}, and nothing else in its folder either"
            raise OSError(errno.ENODEV, reason) from None
        raise DataError(f"{printable(path)}: expected a readable file ({error.strerror})") from None
    if data is None:
        raise DataError(f"{printable(path)}: expected at most {_MAX_BYTES} bytes, found {wanted}")
    return np.frombuffer(data, np.uint8)


def _read_all(descriptor: int, size: int, offset: int) -> bytes:
    """What the file has of these bytes; one read may give fewer, as of a network's file system that was interrupted."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


def _folder_stands(path: str) -> bool:
    """Whether anything is to be seen in a file's folder. A mount that went away leaves it empty, or takes it along."""
    try:
        return next(os.scandir(os.path.dirname(path) or "."), None) is not None
    except OSError:
        return False


def file_sizes(path_of: Callable[[int], str], count: int) -> NDArray[np.int64]:
    """Sizes of `count` files, int64 [count], bytes; -1 of one that is not there, and of those that are not looked at.

    Of more than two million files every second, third and so on is looked at, so that it takes minutes at most.
    Raises StorageError where the storage goes on failing.
    """

    def size_of(index: int) -> int:
        path = path_of(index)
        try:
            return patiently(lambda: os.stat(path).st_size, path)
        except (OSError, ValueError):  # the latter for a name that no file has
            return -1

    sizes = np.full(count, -1, np.int64)
    looked_at = range(0, count, -(-count // _MAX_SIZED) or 1)
    parts = [looked_at[start : start + _SIZED_AT_ONCE] for start in range(0, len(looked_at), _SIZED_AT_ONCE)]
    with ThreadPoolExecutor(_SIZERS) as pool:
        found = pool.map(lambda part: [size_of(index) for index in part], parts)
        for part, part_sizes in zip(parts, progress(found, len(parts), "sizes of files"), strict=True):
            sizes[part] = part_sizes
    return sizes


def read_image(
    source: Source, index: int, seconds: float | None = None, pause: Pause | None = None
) -> NDArray[np.uint8]:
    """`source.read`, uint8 [bytes], again where the storage fails: no more than a time-out makes a bad image.

    seconds, pause: as `patiently` takes them. Raises DataError for an image that is not there, may not be read or is
    wrong, StorageError where the storage goes on failing.
    """
    try:
        return patiently(lambda: source.read(index), source.name(index), seconds, pause)
    except OSError as error:
        if error.errno is None:  # no word of the system's
            raise
        name = printable(source.name(index))
        raise DataError(f"{name}: expected a readable file ({error.strerror})") from None


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
    header to read, for a JPEG without an end, because DALI decodes some windows of it and not others, and for kinds of
    images that are refused.
    """
    return _read_header(encoded)[:2]


def _read_header(encoded: NDArray[np.uint8]) -> tuple[int, int, bool]:
    """Height, width, and whether DALI decodes the file rightly."""
    if image_format(encoded) is None:
        raise ValueError(f"{len(encoded)} bytes without a readable image header (no {', '.join(_SIGNATURES)})")
    data = encoded.data
    frame = _jpeg_frame(data)
    if frame is None:
        return _read_pil_header(encoded)
    if data[-2:] != _END and _END not in data[frame:].tobytes():
        raise ValueError(f"{len(data)} bytes of a JPEG whose end is missing")
    height, width = (data[at] << 8 | data[at + 1] for at in (frame + 5, frame + 7))
    bits, components = data[frame + 4], data[frame + 9]
    if bits != 8 or components not in (1, 3, 4):
        raise ValueError(f"a JPEG of {bits} bits and {components} components (expected 8 bits, and 1, 3 or 4)")
    # Adobe's programs store CMYK inverted. PIL takes all files to be theirs, DALI only those that say so.
    return height, width, components < 4 or _ADOBE in data[:frame].tobytes()


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
    while position + 10 <= len(data) and data[position] == 0xFF:
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


def _read_pil_header(data: NDArray[np.uint8]) -> tuple[int, int, bool]:
    try:
        with open_image(data) as image:
            width, height = image.size
            check_kind(image)
            right = is_right_in_dali(image, data)
    except UnknownPixels:
        raise
    except Exception as error:  # PIL's parsers raise what they like
        unknown = "no TIFF that PIL reads is like that" if image_format(data) == "TIFF" else UNIDENTIFIED
        reason = unknown if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise ValueError(f"{len(data)} bytes without a readable image header ({reason})") from None
    if not (height > 0 and width > 0):
        raise ValueError(f"{len(data)} bytes whose header says {height} x {width} pixels")
    return height, width, right
