"""`Source`, what every data set is to the rest: encoded images with a class each, sizes known without decoding."""

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
_MAX_BYTES = 2**30  # of a file
_MAX_SIZED = 2_000_000  # files that are asked for their sizes
_SIZED_AT_ONCE = 10_000
_SIZERS = 8  # threads that do; a network's file system answers in a millisecond, a disk's cache in a microsecond


class Source(ABC):
    """N encoded images with a class each. Reading is safe from several threads.

    uri: the place as the user wrote it. classes: names of the K classes. labels: int64 [N], indices into classes.
    """

    readers = 8
    """Images that are best read at once; they wait for a disk more than they compute."""

    def __init__(self, uri: str, classes: list[str], labels: NDArray[np.int64]) -> None:
        self.uri = uri
        self.place = uri
        """Which images were taken: the folder of a split, say, where `uri` holds several."""
        self.classes = classes
        self.labels = labels
        """Integers [N], indices into classes; of a data set with an index a view of its map, uint32."""
        self.counted = False
        """Whether the classes are only as many as the largest label says, so that there may be more."""
        self.shard_edges: NDArray[np.int64] | None = None
        """int64 [shards + 1]: shard s holds the images from shard_edges[s] to shard_edges[s + 1] - 1; or None."""
        self.shard_bytes: NDArray[np.int64] | None = None
        """int64 [shards], of shards that are fetched to this machine's disk while they are read; else None."""

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

    def stored_in(self, index: int) -> str:
        """The file that image `index` is in, for people; unlike `name` it is known without reading anything."""
        return self.name(index)

    def expect(self, shards: NDArray[np.int64], protected: int) -> None:  # noqa: B027
        """Tells a source that fetches its shards which of them are read next; any other source ignores it.

        shards: int64 [m], each once, in the order of their next use by this machine's processes, which are all told
        the same; what is not among them is needed later still, or by other machines. protected: how many of the first
        are of batches that are being prepared or come right after these, so that they have to stay on the disk. None at
        all: the iteration over the batches has ended.
        """

    def limit_cache(self, limit: int | None) -> int | None:
        """Says how many bytes of this machine's disk fetched shards may take; called before anything is read.

        limit: None for 80 % of what is free or theirs already. Returns the number, or None where nothing is fetched.
        """
        return None

    def relative_names(self) -> Sequence[str]:
        """The N images' names without the place where the data set lies, the same for every copy of it.

        Unless a kind of data set knows better, what `name` has beside the folder that is common to all images.
        """
        names = [self.name(index) for index in range(len(self))]
        alike = os.path.commonprefix([min(names), max(names)]) if names else ""  # noqa: RUF071 (names may be URIs too)
        return [name[alike.rfind("/") + 1 :] for name in names]

    def listed_names(self) -> Sequence[str]:
        """The N names by which a list of images (image_list.py) knows them: each once, the same for every copy.

        Unless a kind of data set knows better, its `relative_names`.
        """
        return self.relative_names()

    def identity(self) -> "Identity | None":
        """What the data set is, where that was found out earlier; None where `identify` has to ask for names and sizes.

        Raises StorageError.
        """
        return None

    def keep_identity(self, identity: "Identity") -> None:  # noqa: B027
        """Keeps what `identify` found for later starts, where a kind of data set has a place for it."""

    def identity_of(
        self, images: NDArray[np.int64], labels: NDArray[np.int64], classes: list[str]
    ) -> "Identity | None":
        """`identity` of some images, int64 [n] in ascending order, with these labels, [n], and classes, K names."""
        return None

    def fingerprints(self, images: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """int64 [N, m], numbers that are others where an image is stored with other content; no image is read.

        images: int64 [n], for these alone, [n, m]. Unless a kind of data set knows better, m is 1: the sizes of the
        files that `name` names, bytes.
        """
        chosen = range(len(self)) if images is None else images.tolist()
        return file_sizes([self.name(index) for index in chosen])[:, None]

    def outline(self) -> str:
        """A digest of the images as this process has them, for comparing processes of a node; no file is asked.

        Unless a kind of data set knows better, of the classes and the labels.
        """
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def header(self, index: int, encoded: NDArray[np.uint8]) -> Header:
        """What the header of image `index`, whose file is `encoded`, uint8 [bytes], says: before anything is allocated.

        Raises DataError where there is none, for a kind of image that is refused, and beyond MAX_PIXELS.
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
        """Image `index`, whose file is `encoded`, as DALI decodes it rightly, uint8 [bytes], and its height and width.

        That is the file itself, unless it is of a kind that DALI gets wrong. Raises DataError as `header` does, and
        where such a file cannot be decoded.
        """
        height, width, is_right = self.header(index, encoded)
        if is_right:
            return encoded, (height, width)
        try:
            with open_image(encoded) as image:
                return as_decodable(encoded, image), (height, width)
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


def file_sizes(paths: Sequence[str]) -> NDArray[np.int64]:
    """Sizes of N files, int64 [N], bytes; -1 of one that is not there, and of those that are not looked at.

    Of more than two million files every second, third and so on is looked at, so that it takes minutes at most.
    Raises StorageError where the storage goes on failing.
    """

    def size_of(path: str) -> int:
        try:
            return patiently(lambda: os.stat(path).st_size, path)
        except (OSError, ValueError):  # the latter for a name that no file has
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
    """`source.read`, uint8 [bytes], again where the storage fails: no more than a time-out makes a bad image.

    seconds, pause: as `patiently` takes them. Raises DataError for an image that is not there, may not be read or is
    wrong, StorageError where the storage goes on failing.
    """
    try:
        return patiently(lambda: source.read(index), source.stored_in(index), seconds, pause)
    except OSError as error:
        if error.errno is None:  # no word of the system's
            raise
        name = printable(source.name(index))
        raise DataError(f"{name}: expected a readable file ({error.strerror})") from None
