"""`Listing`: which images a data set of files has, with their classes, as arrays that all processes of a node map.

About 26 bytes an image: the file's name, where it ends, and the label. Folders stand once each.
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
_REMEMBERED = 2**15  # folders, of which a process keeps what it looked up: data sets of classes have no more
_END = b"\0"  # no name of a file has it


class Names(Sequence[str]):
    """N names of files in two arrays: uint8 [bytes], each name ended by a zero, and where each ends, [N]."""

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[Any]) -> None:
        self.text, self.ends = text, ends
        self._text, self._ends = text.data, ends.data  # their items are Python's numbers, at a tenth of the time

    @classmethod
    def join(cls, parts: Sequence[bytes], lengths: Sequence[NDArray[Any]]) -> "Names":
        """Of names as `encode_names` gives them, part by part."""
        text = np.frombuffer(b"".join(parts), np.uint8)
        ends = np.cumsum(np.concatenate(lengths), dtype=np.uint64)
        return cls(text, ends.astype(np.uint32) if len(text) < 2**32 else ends)

    @classmethod
    def of(cls, names: Sequence[str]) -> "Names":
        text, lengths = encode_names(names)
        return cls.join([text], [lengths])

    def __reduce__(self) -> tuple[Any, ...]:
        return Names, (self.text, self.ends)  # to another process

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
    """At least one name, each ended by a zero, and the bytes of each, the zero among them."""
    text = os.fsencode("\0".join(names)) + _END
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 0) + 1
    return text, np.diff(ends, prepend=0)


@dataclass(frozen=True)
class Listing:
    """N images of K classes in F folders. Paths are relative to the data set's folder, where they are below it."""

    files: Names
    """N names of files, without their folders."""
    folders: Names
    """F paths of folders, "" for the data set's own."""
    first: NDArray[np.int64]
    """[R], images from which on the next folder's come; the first is 0."""
    folder_of: NDArray[np.uint32]
    """[R], the folders that come from there on."""
    labels: NDArray[Any]
    """uint16 or uint32 [N]."""
    classes: list[str]
    """K names."""
    digest: str
    """SHA-256 of all of these, in hexadecimal."""

    def __len__(self) -> int:
        return len(self.files)

    def names(self, begin: Callable[[str], str]) -> "ImageNames":
        """All N files' names, each behind what `begin` gives for its folder."""
        return ImageNames(self, begin)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All but classes and digest, for `from_arrays`."""
        values = (self.files.text, self.files.ends, self.folders.text, self.folders.ends, self.first, self.folder_of,
                  self.labels)  # fmt: skip
        return dict(zip(_ARRAYS, values, strict=True))

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], classes: list[str], digest: str) -> "Listing":
        """What `arrays` gave. Raises KeyError where one is missing."""
        files, ends, folders, folder_ends, first, folder_of, labels = (arrays[name] for name in _ARRAYS)
        return cls(Names(files, ends), Names(folders, folder_ends), first, folder_of, labels, classes, digest)


class ImageNames(Sequence[str]):
    """The names of a listing's N images, made when they are asked for, each behind what its folder `begin`s with."""

    def __init__(self, listing: Listing, begin: Callable[[str], str]) -> None:
        self._files, self._folders, self._begin = listing.files, listing.folders, begin
        self._first, self._folder_of = listing.first, listing.folder_of
        self._edges = self._first.tolist() if len(self._first) <= _REMEMBERED else self._first
        self._begins: dict[int, str] = {}  # of folders that were asked for

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
    """Collects images folder by folder, each encoded at once: a str takes four times the memory."""

    def __init__(self) -> None:
        self._text: list[bytes] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._first: list[int] = []
        self._folder_of: list[int] = []
        self._folders: dict[str, int] = {}
        self.count = 0
        """Images so far."""

    def add(self, folder: str, files: Sequence[str]) -> None:
        """Files that come next, all of one folder; none is nothing."""
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
