"""The index of a set of tar shards: each image's place, size and class in 12 bytes, which processes map.

It consists of two files: SPLIT.index.npy has the rows, and SPLIT.index.json describes shards and classes. All processes
of a machine map the same rows, and a start does no work that grows with the number of images.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.classes import order_classes
from deit_fast.data.sources.identity import Identity, digest_rows, identify_rows
from deit_fast.data.sources.samples import RULE
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.files import atomic_path, json_text

ROW = np.dtype([("offset", "<u4"), ("size", "<u4"), ("label", "<u4")])
"""An image's row: its offset in the shard in blocks of 512 bytes, its size in bytes, and its class."""
LARGEST = 2**32 - 1
LOST = LARGEST
"""The offset of an image that is lost."""
_FORMAT = 1

LabelKind = Literal["numbers", "names", "folders"]
"""The kind of labels in the shards: only numbers, some names of classes.txt, or the folders in the keys."""


FILE_VERSION = "mtime_ns="
"""Prefix of a version that is a file's modification time."""


class ShardEntry(NamedTuple):
    """A shard, and facts about its rows."""

    name: str
    """File name beside the index, or path or URI."""
    bytes: int
    version: str
    """Changes whenever the content changes: an object's ETag, or `file_version` of a file; "" if unknown."""
    images: int
    digest: str
    """`digest_rows` of its rows."""


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The N images of S shards: the shards' rows in the order of the shards."""

    shards: tuple[ShardEntry, ...]
    rows: NDArray[np.void]
    """ROW [N], mapped if the index was read from a file."""
    classes: list[str]
    """Names of the K classes."""
    named: bool
    """Whether the classes come from a classes.txt."""
    kind: LabelKind
    identity: Identity

    @property
    def counted(self) -> bool:
        """Whether the number of classes is only the largest label plus 1, so that there may be more classes."""
        return not self.named and self.kind != "folders"

    @property
    def digest(self) -> str:
        """A digest of the classes and all rows."""
        return self.identity.digest

    @cached_property
    def edges(self) -> NDArray[np.int64]:
        """int64 [S + 1]: shard s holds the rows from edges[s] to edges[s + 1] - 1."""
        return np.concatenate([[0], np.cumsum([shard.images for shard in self.shards])]).astype(np.int64)

    def rows_of(self, shard: int) -> NDArray[np.void]:
        """The rows of a shard, given its number; a view."""
        return self.rows[self.edges[shard] : self.edges[shard + 1]]

    def take(self, names: Sequence[str]) -> "ShardIndex":
        """The index of these shards alone, in this order; the rows are a view where the shards are consecutive.

        Classes that are counted, or that are folders, are those of the remaining shards. Raises KeyError for a shard
        that is missing, DataError where all remaining images are in one folder.
        """
        if list(names) == [shard.name for shard in self.shards]:
            return self
        place = {shard.name: number for number, shard in enumerate(self.shards)}
        numbers = [place[name] for name in names]
        edges = self.edges
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            rows = self.rows[edges[numbers[0]] : edges[numbers[-1] + 1]]
        else:
            rows = np.concatenate([self.rows_of(number) for number in numbers])
        taken = make_index([self.shards[number] for number in numbers], rows, self.classes, self.named, self.kind)
        if taken.kind == "folders" and len(taken.classes) == 1:
            raise without_labels(names[0], taken.classes[0])
        return taken

    def called(self, names: Sequence[str]) -> "ShardIndex":
        """The index with other names for its shards, given in the shards' order."""
        pairs = zip(self.shards, names, strict=True)
        return replace(self, shards=tuple(shard._replace(name=name) for shard, name in pairs))


def make_index(
    shards: Sequence[ShardEntry], rows: NDArray[np.void], classes: list[str], named: bool, kind: LabelKind
) -> ShardIndex:
    """The index of shards with known rows. Without a classes.txt, the classes are those that images have."""
    if not named and kind == "folders":
        there = np.flatnonzero(np.bincount(rows["label"], minlength=len(classes)))
        if len(there) < len(classes):
            kept = order_classes([classes[label] for label in there.tolist()])
            label_of = {name: label for label, name in enumerate(kept)}
            rows = rows.copy()
            rows["label"] = np.array([label_of.get(name, 0) for name in classes], np.uint32)[rows["label"]]
            classes = kept
            edges = np.cumsum([0, *(shard.images for shard in shards)]).tolist()
            shards = [
                shard._replace(digest=digest_rows(rows[edges[number] : edges[number + 1]]))
                for number, shard in enumerate(shards)
            ]
    elif not named:
        classes = [str(label) for label in range(int(rows["label"].max(initial=0)) + 1 if len(rows) else 0)]
    identity = identify_rows(rows, [shard.digest for shard in shards], classes)
    return ShardIndex(tuple(shards), rows, classes, named, kind, identity)


def is_store_version(version: str) -> bool:
    """Whether a store gave this version, so that another version means another object."""
    return bool(version) and not version.startswith(FILE_VERSION)


def without_labels(shard: str, folder: str) -> DataError:
    """The error for shards whose only labels are folders, if all images are in one folder."""
    return DataError(
        f"{shard}: expected KEY.jpg and KEY.cls side by side, found images without labels, all in the folder "
        f"{folder!r} ({RULE})"
    )


def write_index(index: ShardIndex, folder: Path, stem: str) -> None:
    """Writes folder/STEM.index.npy and .json, each whole or not at all. Raises OSError.

    The SHA-256 of the rows is in the .json and at the end of the .npy, so that files of two indexes are told apart.
    """
    rows = np.ascontiguousarray(index.rows)
    digest = hashlib.sha256(rows.view(np.uint8).data)
    with atomic_path(folder / f"{stem}.index.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, rows)
        file.write(digest.digest())
    content = {
        "format": _FORMAT,
        "images": len(index.rows),
        "rows": digest.hexdigest(),
        "labels": index.kind,
        "named": index.named,
        "classes": index.classes,
        "shards": [list(shard) for shard in index.shards],
        "identity": index.identity.as_plain(),
    }
    with atomic_path(folder / f"{stem}.index.json") as temporary:
        temporary.write_text(json_text(content, indent=None) + "\n", encoding="utf-8")


def read_index(content: bytes, rows: Path) -> ShardIndex:
    """The index from a .json's `content` and the .npy file `rows`, which is mapped.

    Raises OSError, and ValueError (one line, without the file's name) where these are no index or belong to different
    indexes.
    """
    try:
        plain: dict[str, Any] = json.loads(content)
        if plain["format"] != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}, found {plain['format']!r}")
        shards = tuple(ShardEntry(*shard) for shard in plain["shards"])
        _check_words(shards, plain["classes"])
        identity = Identity.from_plain(plain["identity"])
        index = ShardIndex(shards, np.empty(0, ROW), plain["classes"], plain["named"], plain["labels"], identity)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"expected an index of shards ({type(error).__name__}: {error})") from None
    try:
        mapped = np.load(rows, mmap_mode="r", allow_pickle=False)
    except EOFError:
        raise ValueError(f"expected rows in {rows.name}, found none") from None
    end = mapped.offset + mapped.nbytes if isinstance(mapped, np.memmap) else -1
    with open(rows, "rb") as file:
        file.seek(max(end, 0))
        trailer = file.read()
    if mapped.dtype != ROW or mapped.shape != (int(index.edges[-1]),) or trailer.hex() != plain["rows"]:
        raise ValueError(f"expected the rows of the .json beside {rows.name}, found others")
    return ShardIndex(shards, mapped.view(np.ndarray), index.classes, index.named, index.kind, identity)


def _check_words(shards: Sequence[ShardEntry], classes: Any) -> None:
    """Raises TypeError where a word or a number of the .json has another type, as after an edit by hand."""
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise TypeError("classes that are no words")
    for name, size, version, images, digest in shards:
        are_words = all(isinstance(each, str) for each in (name, version, digest))
        if not (are_words and all(type(each) is int and each >= 0 for each in (size, images))):
            raise TypeError(f"a shard's entry {name!r}")
