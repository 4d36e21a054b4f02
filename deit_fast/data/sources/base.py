"""`Source`, the interface of every data set: encoded images with a class each; their sizes are known undecoded."""

import errno
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.headers import MAX_PIXELS, Header, open_image, read_header
from deit_fast.data.sources.pixels import as_decodable
from deit_fast.runtime.errors import DataError, one_line, printable
from deit_fast.runtime.patience import Pause, may_pass, patiently
from deit_fast.runtime.progress import progress

if TYPE_CHECKING:
    from deit_fast.data.sources.identity import Identity

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_MAX_BYTES = 2**30  # largest file that is read, bytes
_MAX_SIZED = 2_000_000  # most files whose sizes are asked for
_SIZED_AT_ONCE = 10_000
_SIZERS = 8  # threads that ask for sizes: a network's file system answers in a millisecond


class Source(ABC):
    """N encoded images with a class each. Reading is safe from several threads.

    uri: the place as the user wrote it. classes: names of the K classes. labels: int64 [N], indices into classes.
    """

    readers = 8
    """How many images are best read at once. Reading threads wait for a disk more than they compute."""

    def __init__(self, uri: str, classes: list[str], labels: NDArray[np.int64]) -> None:
        self.uri = uri
        self.place = uri
        """The place of the images: for example the folder of a split, if `uri` holds several splits."""
        self.classes = classes
        self.labels = labels
        """Integers [N], indices into classes; for a data set with an index, a view of the mapped rows, uint32."""
        self.counted = False
        """Whether the number of classes is only the largest label plus 1, so that there may be more classes."""
        self.shard_edges: NDArray[np.int64] | None = None
        """int64 [shards + 1]: shard s holds the images from shard_edges[s] to shard_edges[s + 1] - 1; or None."""
        self.shard_bytes: NDArray[np.int64] | None = None
        """int64 [shards], of shards that are fetched to this machine's disk while they are read; else None."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as stored, encoded: uint8 [bytes], read-only. Call `read_image` instead, which retries.

        Raises DataError for a fault of this one image, and OSError as it comes from the system.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """The place of image `index`, for messages: a path, or archive:member. It ends in the encoding's suffix."""

    def stored_in(self, index: int) -> str:
        """The file that holds image `index`, for messages; unlike `name`, this is known without reading anything."""
        return self.name(index)

    def expect(self, shards: NDArray[np.int64], protected: int) -> None:  # noqa: B027
        """Tells a source that fetches shards which of them are read next. Other sources ignore the call.

        shards: int64 [m], each once, in the order of their next use by this machine's processes. All processes of the
        machine pass the same list. A shard that is not in the list is needed later, or by other machines only. An empty
        list says that the iteration over the batches has ended. protected: how many of the first shards have to stay on
        the disk, because they belong to batches that are being prepared or come right after these.
        """

    def limit_cache(self, limit: int | None) -> int | None:
        """Sets how many bytes of this machine's disk fetched shards may take; called before anything is read.

        limit: None allows 80 % of the bytes that are free or already taken by such shards. Returns the limit, or None
        where the source fetches nothing.
        """
        return None

    def relative_names(self) -> Sequence[str]:
        """The N images' names relative to the place of the data set: the same names for every copy of the data set.

        By default, each `name` without the folder that is common to all images.
        """
        names = [self.name(index) for index in range(len(self))]
        alike = os.path.commonprefix([min(names), max(names)]) if names else ""  # noqa: RUF071 (names may be URIs too)
        return [name[alike.rfind("/") + 1 :] for name in names]

    def listed_names(self) -> Sequence[str]:
        """The N names by which a list of images (image_list.py) refers to them, each once, equal for every copy.

        By default, `relative_names`.
        """
        return self.relative_names()

    def identity(self) -> "Identity | None":
        """The identity of the data set if it was computed earlier; None where `identify` has to compute it.

        Raises StorageError.
        """
        return None

    def keep_identity(self, identity: "Identity") -> None:  # noqa: B027
        """Keeps what `identify` computed for later starts, where this kind of data set has a place for it."""

    def identity_of(
        self, images: NDArray[np.int64], labels: NDArray[np.int64], classes: list[str]
    ) -> "Identity | None":
        """`identity` of some images, int64 [n] in ascending order, with the labels [n] and the K class names."""
        return None

    def fingerprints(self, images: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """int64 [N, m]: numbers that change when an image is stored with other content. No image is read.

        images: int64 [n], returns the numbers of these images alone, [n, m]. By default m is 1 and the number is the
        size in bytes of the file that `name` names.
        """
        chosen = range(len(self)) if images is None else images.tolist()
        return file_sizes([self.name(index) for index in chosen])[:, None]

    def outline(self) -> str:
        """A digest of the images as this process sees them, for comparing the processes of a node. No file is read.

        By default, a digest of the classes and the labels.
        """
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def header(self, index: int, encoded: NDArray[np.uint8]) -> Header:
        """The header of image `index`, whose file is `encoded`, uint8 [bytes]; read before memory is allocated.

        Raises DataError where there is no header, for a kind of image that is refused, and above MAX_PIXELS.
        """
        try:
            header = read_header(encoded)
        except ValueError as error:
            raise DataError(f"{printable(self.name(index))}: expected an image, found {error}") from None
        if header.height * header.width > MAX_PIXELS:
            raise DataError(
                f"{printable(self.name(index))}: expected at most {MAX_PIXELS} pixels, its header says "
                f"{header.height} x {header.width}"
            )
        return header

    def prepare(self, index: int, encoded: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """A file of image `index` that DALI decodes correctly, uint8 [bytes], and the image's height and width.

        encoded: the image's own file. It is returned as it is, unless DALI decodes this kind of image wrongly. Raises
        DataError as `header` does, and where a file of such a kind cannot be decoded.
        """
        height, width, is_right = self.header(index, encoded)
        if is_right:
            return encoded, (height, width)
        try:
            with open_image(encoded) as image:
                return as_decodable(encoded, image), (height, width)
        except Exception as error:  # PIL's decoders raise many kinds of exceptions
            reason = one_line(error) or type(error).__name__
            name = printable(self.name(index))
            raise DataError(f"{name}: expected an image that can be decoded ({reason})") from None


def read_bytes(path: str, offset: int = 0, size: int | None = None) -> NDArray[np.uint8]:
    """A file's bytes, uint8 [n]: the whole file, or `size` bytes from byte `offset` on, fewer where the file ends.

    The bytes are read, not mapped, so that waiting for a disk does not hold the interpreter's lock. Raises DataError,
    also for more than 1 GiB, and OSError where the storage fails: `read_image` and `open_source` then try again.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # otherwise opening a pipe would wait for its writer
        try:
            wanted = os.fstat(descriptor).st_size if size is None else size
            data = read_all(descriptor, wanted, offset) if wanted <= _MAX_BYTES else None
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


def read_all(descriptor: int, size: int, offset: int) -> bytes:
    """The file's bytes in this range. Reads repeatedly, as one read may return fewer bytes, for example on NFS."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


def _folder_stands(path: str) -> bool:
    """Whether a file's folder has any content. A mount that went away leaves an empty folder, or none."""
    try:
        return next(os.scandir(os.path.dirname(path) or "."), None) is not None
    except OSError:
        return False


def file_sizes(paths: Sequence[str]) -> NDArray[np.int64]:
    """Sizes of N files, int64 [N], bytes; -1 for a missing file, and for a file that is not looked at.

    Of more than two million files every second, third and so on is looked at, so that the call takes minutes at most.
    Raises StorageError where the storage goes on failing.
    """

    def size_of(path: str) -> int:
        try:
            return patiently(lambda: os.stat(path).st_size, path)
        except (OSError, ValueError):  # ValueError: no file can have such a name
            return -1

    sizes = np.full(len(paths), -1, np.int64)
    step = -(-len(paths) // _MAX_SIZED) or 1
    parts = [
        slice(start, min(start + _SIZED_AT_ONCE * step, len(paths)), step)
        for start in range(0, len(paths), _SIZED_AT_ONCE * step)
    ]
    with ThreadPoolExecutor(_SIZERS) as pool:
        found = pool.map(lambda part: [size_of(path) for path in paths[part]], parts)
        for part, part_sizes in zip(parts, progress(found, len(parts), "sizes of files"), strict=True):
            sizes[part] = part_sizes
    return sizes


def read_image(
    source: Source, index: int, seconds: float | None = None, pause: Pause | None = None
) -> NDArray[np.uint8]:
    """`source.read`, uint8 [bytes], repeated while the storage fails, so that a time-out does not make a bad image.

    seconds, pause: as in `patiently`. Raises DataError for an image that is missing, may not be read or is damaged,
    StorageError where the storage goes on failing.
    """
    try:
        return patiently(lambda: source.read(index), source.stored_in(index), seconds, pause)
    except OSError as error:
        if error.errno is None:  # not an error of the system
            raise
        name = printable(source.name(index))
        raise DataError(f"{name}: expected a readable file ({error.strerror})") from None
