"""`ListedFiles`: a source whose images are the files of a listing; the base of all data sets in folders."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source, file_sizes, read_bytes
from deit_fast.data.sources.identity import Identity
from deit_fast.data.sources.kept_listing import Kept
from deit_fast.runtime.mapped import read_arrays, write_arrays

_ASKED_AGAIN = 10_000  # most files whose sizes every start compares with the kept ones


class ListedFiles(Source):
    """N images as files below a folder, listed by `keep_listing`."""

    def __init__(self, uri: str, folder: Path, kept: Kept) -> None:
        listing = kept.listing
        super().__init__(uri, listing.classes, listing.labels)
        self._folder, self._listing, self._kept = str(folder), listing, kept.path
        self._paths = listing.names(self._path_of)
        self._asked: NDArray[np.int64] | None = None

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as stored, uint8 [bytes]. Raises DataError where its file cannot be read."""
        return read_bytes(self.name(index))

    def name(self, index: int) -> str:
        return self._paths[index]

    def _inner(self, folder: str) -> str:
        """The end of a folder's path, which its images' names begin with in every copy of the data set."""
        return folder[self._common :]

    @cached_property
    def _common(self) -> int:
        """The length of the path prefix that all folders share."""
        folders = [self._path_of(folder) for folder in self._listing.folders[:]]
        return os.path.commonprefix([min(folders), max(folders)]).rfind("/") + 1  # noqa: RUF071 (they end in slashes)

    def _path_of(self, folder: str) -> str:
        return os.path.join(self._folder, folder, "")

    def relative_names(self) -> Sequence[str]:
        return self._listing.names(lambda folder: self._inner(self._path_of(folder)))

    def listed_names(self) -> Sequence[str]:
        """Paths relative to the data set's folder, for images below it."""
        return self._listing.names(lambda folder: os.path.join(folder, "") if folder else "")

    def fingerprints(self, images: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """int64 [N, 1], the sizes of the files, bytes; with `images` (int64 [n]), of these alone, [n, 1].

        If there are more than 10,000 images, only every second, third and so on is asked for its size, and the others
        have -1.
        """
        if images is None:
            return file_sizes(self._paths)[:, None]
        sizes, step = np.full((len(images), 1), -1, np.int64), -(-len(images) // _ASKED_AGAIN) or 1
        sizes[::step, 0] = file_sizes([self._paths[index] for index in images[::step].tolist()])
        return sizes

    def outline(self) -> str:
        """A digest of names, labels and classes."""
        return hashlib.sha256(f"{self._listing.digest} {super().outline()}".encode()).hexdigest()

    @property
    def _identity_path(self) -> Path:
        return self._kept.with_suffix(".identity")

    def identity(self) -> Identity | None:
        """The kept identity, if listing, labels and classes are the same and no size has changed.

        The sizes of at most 10,000 files, evenly spread, are compared. If one size has changed, the listing is not
        trusted either: the next start lists the folders anew.
        """
        step = -(-len(self) // _ASKED_AGAIN)
        self._asked = file_sizes(self._paths[::step])
        try:
            content, arrays = read_arrays(self._identity_path)
            if content["outline"] != self.outline():
                return None
            if np.array_equal(arrays["sizes"], self._asked):
                return Identity.from_plain(content["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with suppress(OSError):
            self._kept.unlink(missing_ok=True)
        return None

    def keep_identity(self, identity: Identity) -> None:
        """Keeps the identity beside the listing, where the cache folder can be written."""
        if self._asked is not None:
            content = {"outline": self.outline(), "identity": identity.as_plain()}
            with suppress(OSError):
                write_arrays(self._identity_path, content, {"sizes": self._asked})
