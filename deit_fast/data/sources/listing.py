"""`Listing`: the images of a data set of files, with their classes, as arrays that all processes of a node map.

An image takes about 26 bytes: its file name, the end of the name, and the label. Each folder is stored once.
"""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

_ARRAYS = ("files", "file_ends", "folders", "folder_ends", "first", "folder_of", "labels")
_REMEMBERED = 2**15  # most folders whose paths a process remembers; data sets with class folders have no more
_END = b"\0"  # no file name contains it


class Names(Sequence[str]):
    """N file names in two arrays: uint8 [bytes], each name followed by a zero, and the end of each name, [N]."""

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[Any]) -> None:
        self.text, self.ends = text, ends
        self._text, self._ends = text.data, ends.data  # indexing gives Python ints, in a tenth of the time of numpy's

    @classmethod
    def join(cls, parts: Sequence[bytes], lengths: Sequence[NDArray[Any]]) -> "Names":
        """Joins names that `encode_names` returned part by part."""
        text = np.frombuffer(b"".join(parts), np.uint8)
        ends = np.cumsum(np.concatenate(lengths), dtype=np.uint64)
        return cls(text, ends.astype(np.uint32) if len(text) < 2**32 else ends)

    @classmethod
    def of(cls, names: Sequence[str]) -> "Names":
        text, lengths = encode_names(names)
        return cls.join([text], [lengths])

    def __reduce__(self) -> tuple[Any, ...]:
        return Names, (self.text, self.ends)  # pickles the arrays

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if not isinstance(index, slice):
            return self._decode(range(len(self))[index], 1)
        start, stop, step = index.indices(len(self))
        if step == 1:
            return self._decode(start, stop - start).split("\0") if stop > start else []
        return [self._decode(each, 1) for each in range(start, stop, step)]

    def _decode(self, start: int, count: int) -> str:
        first = self._ends[start - 1] if start else 0
        return os.fsdecode(bytes(self._text[first : self._ends[start + count - 1] - 1]))


def encode_names(names: Sequence[str]) -> tuple[bytes, NDArray[np.int64]]:
    """At least one name, each followed by a zero, and the length of each in bytes, with its zero."""
    text = os.fsencode("\0".join(names)) + _END
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 0) + 1
    return text, np.diff(ends, prepend=0)


@dataclass(frozen=True)
class Listing:
    """N images of K classes in F folders. Paths below the data set's folder are relative to it."""

    files: Names
    """N file names, without their folders."""
    folders: Names
    """F paths of folders; "" is the data set's own folder."""
    first: NDArray[np.int64]
    """[R]. Index of the first image of each run of images in one folder; the first element is 0."""
    folder_of: NDArray[np.uint32]
    """[R]. The folder of each such run."""
    labels: NDArray[Any]
    """uint16 or uint32 [N]."""
    classes: list[str]
    """K names."""
    digest: str
    """SHA-256 of all fields above, in hexadecimal."""

    def __len__(self) -> int:
        return len(self.files)

    def names(self, begin: Callable[[str], str]) -> "ImageNames":
        """All N files' names, each after the text that `begin` returns for its folder."""
        return ImageNames(self, begin)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All fields but classes and digest, for `from_arrays`."""
        values = (self.files.text, self.files.ends, self.folders.text, self.folders.ends, self.first, self.folder_of,
                  self.labels)  # fmt: skip
        return dict(zip(_ARRAYS, values, strict=True))

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], classes: list[str], digest: str) -> "Listing":
        """The listing of the arrays that `arrays` returned. Raises KeyError where one is missing."""
        files, ends, folders, folder_ends, first, folder_of, labels = (arrays[name] for name in _ARRAYS)
        return cls(Names(files, ends), Names(folders, folder_ends), first, folder_of, labels, classes, digest)


class ImageNames(Sequence[str]):
    """The names of a listing's N images, made when asked for; `begin` returns the text before a folder's files."""

    def __init__(self, listing: Listing, begin: Callable[[str], str]) -> None:
        self._files, self._folders, self._begin = listing.files, listing.folders, begin
        self._first, self._folder_of = listing.first, listing.folder_of
        self._edges = self._first.tolist() if len(self._first) <= _REMEMBERED else self._first
        self._begins: dict[int, str] = {}  # text for each folder that was asked for

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if not isinstance(index, slice):
            folder = int(self._folder_of[bisect_right(self._edges, range(len(self))[index]) - 1])
            begin = self._begins.get(folder)
            if begin is None:
                begin = self._begin(self._folders[folder])
                if len(self._begins) < _REMEMBERED:
                    self._begins[folder] = begin
            return begin + self._files[index]
        indices = np.arange(*index.indices(len(self)))
        runs, starts = np.unique(np.searchsorted(self._first, indices, "right") - 1, return_index=True)
        begins = [self._begin(self._folders[folder]) for folder in self._folder_of[runs].tolist()]
        files = self._files[index]
        parts = zip(begins, starts.tolist(), np.append(starts, len(files))[1:].tolist(), strict=True)
        return [begin + file for begin, start, stop in parts for file in files[start:stop]]


class ListingBuilder:
    """Collects images folder by folder. Each name is encoded at once, because a str takes four times the memory."""

    def __init__(self) -> None:
        self._text: list[bytes] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._first: list[int] = []
        self._folder_of: list[int] = []
        self._folders: dict[str, int] = {}
        self.count = 0
        """Number of images added so far."""

    def add(self, folder: str, files: Sequence[str]) -> None:
        """Adds the next files, all of one folder; an empty sequence adds nothing."""
        if not files:
            return
        text, lengths = encode_names(files)
        self._text.append(text)
        self._lengths.append(lengths)
        self._first.append(self.count)
        self._folder_of.append(self._folders.setdefault(folder, len(self._folders)))
        self.count += len(files)

    def finish(self, labels: NDArray[Any], classes: list[str]) -> Listing:
        """The listing of the N images added. labels: integers [N]. classes: K names."""
        listing = Listing(
            Names.join(self._text, self._lengths),
            Names.of(list(self._folders)),
            np.array(self._first, np.int64),
            np.array(self._folder_of, np.uint32),
            labels.astype(np.uint16 if len(classes) <= 2**16 else np.uint32),
            classes,
            digest="",
        )
        digest = hashlib.sha256("\0".join(classes).encode("utf-8", "surrogateescape"))
        for name, array in listing.arrays().items():
            digest.update(f"\0{name} {array.dtype.str} {array.nbytes}\0".encode())
            digest.update(np.ascontiguousarray(array).data)
        return replace(listing, digest=digest.hexdigest())
