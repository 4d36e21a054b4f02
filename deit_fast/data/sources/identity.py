"""The identity of a data set: a digest of its images, their classes and their order, kept in a run's checkpoints.

The identity is the same wherever the data set lies, whichever process lists it and in whatever order a file system
does. No image is read: an image that was replaced by another one of the same name and size goes unnoticed (except with
CIFAR, whose images are in memory). Beside the digest stand counts and sums by buckets of names, 32 KB, which tell what
changed. Computing it takes about a second per million images, plus, for folders, the time in which the file system
returns the sizes. The images of an index of shards have no names there: they are identified by their sizes, and the
index holds the identity from when it was made.
"""

import hashlib
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source
from deit_fast.runtime.errors import printable

_BUCKETS = 1024
_EXACT = 8  # up to this many changed images nearly always fall into different buckets; of more, some may share one
_PART = 2**20  # number of images whose names are processed at a time
_Sums = NDArray[np.uint64]

Key = Literal["names", "sizes"]
"""The property by which an image is recognised."""


@dataclass(frozen=True)
class Identity:
    """A data set's digest, and counts that tell where two data sets differ: plain data, which a checkpoint keeps."""

    digest: str
    """SHA-256 of classes, names, labels and fingerprints in their order: equal where the data sets are."""
    classes: list[str]
    class_sizes: list[int]
    """The number of images of each of the K classes."""
    images: list[int]
    """For each bucket of names: its number of images, and sums over their names, their classes and their
    fingerprints."""
    names: list[int]
    labels: list[int]
    contents: list[int]
    key: Key = "names"
    """What the buckets are made of. With "sizes", `names` holds sums over sizes, and `contents` adds no information."""

    def as_plain(self) -> dict[str, Any]:
        """The identity as plain data for a checkpoint; the inverse of `from_plain`."""
        return asdict(self)

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> "Identity":
        """The identity that `as_plain` returned."""
        return cls(**content)

    def changes_from(self, before: "Identity") -> list[str]:
        """What differs from `before`, in words, a line for each kind of difference; empty where both are equal."""
        if self.digest == before.digest:
            return []
        found = _compare_classes(self.classes, before.classes)
        if self.key != before.key:  # an earlier version identified the images of shards by name
            total, theirs = sum(self.images), sum(before.images)
            found += [f"{total} images, {theirs} before"] if total != theirs else []
            return found + self._compare_sizes(before)
        more = np.array(self.images) - np.array(before.images)
        names_differ = np.array(self.names) != np.array(before.names)
        renamed = int(((more == 0) & names_differ).sum())
        added, removed = int(more[more > 0].sum()) + renamed, int(-more[more < 0].sum()) + renamed
        if self.key == "sizes" and added == removed and self.class_sizes == before.class_sizes and not found:
            found += [f"{_count(added)} of other content by their sizes"] if added else []
            added = removed = 0
        both = bool(added and removed)
        found += [f"{_count(added, both)} added"] if added else []
        found += [f"{_count(removed, both)} removed"] if removed else []
        same = (more == 0) & ~names_differ
        relabelled = int((same & (np.array(self.labels) != np.array(before.labels))).sum())
        found += [f"{_count(relabelled)} relabelled"] if relabelled else []
        resized = int((same & (np.array(self.contents) != np.array(before.contents))).sum())
        found += [f"{_count(resized)} of other content by their sizes or places"] if resized else []
        if not found:
            return ["the same images in another order" + (" or in other shards" if self.key == "sizes" else "")]
        return found + self._compare_sizes(before)

    def shares(self, other: "Identity") -> float:
        """About which fraction of these images another data set has too, 0 to 1; useless for many images."""
        filled = [bucket for bucket, count in enumerate(self.images) if count]
        pairs = (self.contents, other.contents), (self.labels, other.labels)
        same = [bucket for bucket in filled if all(ours[bucket] == theirs[bucket] for ours, theirs in pairs)]
        return len(same) / len(filled) if filled and self.key == other.key else 0.0

    def _compare_sizes(self, before: "Identity") -> list[str]:
        """The first class whose number of images has changed, and the number of such classes."""
        ours = dict(zip(self.classes, self.class_sizes, strict=True))
        theirs = dict(zip(before.classes, before.class_sizes, strict=True))
        differ = [name for name in ours if name in theirs and ours[name] != theirs[name]]
        if not differ:
            return []
        rest = f", as {len(differ) - 1} more have other numbers" if len(differ) > 1 else ""
        return [f"class {printable(differ[0])!r} has {ours[differ[0]]} images, {theirs[differ[0]]} before{rest}"]


def identify(source: Source) -> Identity:
    """The identity of a source's N images and K classes: the one that the source keeps, else computed anew.

    Raises StorageError where sizes cannot be read.
    """
    known = source.identity()
    if known is not None:
        return known
    found = _compute(source)
    source.keep_identity(found)
    return found


def _compute(source: Source) -> Identity:
    classes = [unicodedata.normalize("NFC", name) for name in source.classes]
    names, fingerprints = source.relative_names(), source.fingerprints().astype("<i8")
    digest, keys = hashlib.sha256(), np.empty(len(names), np.uint64)
    for start in range(0, len(names), _PART):
        encoded = [encode_name(name) for name in names[start : start + _PART]]
        keys[start : start + len(encoded)] = np.fromiter(map(zlib.crc32, encoded), np.uint64, len(encoded))
        digest.update(b"\0".join(encoded) + b"\0")
    for array in (source.labels.astype("<i8"), fingerprints):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(b"\0".join(map(encode_name, classes)))

    buckets = (keys % _BUCKETS).astype(np.int64)
    by_class = _class_numbers(classes)
    contents = keys
    for column in fingerprints.T:
        contents = mix_bits(contents ^ column.astype(np.uint64))
    return Identity(
        digest=digest.hexdigest(),
        classes=classes,
        class_sizes=np.bincount(source.labels, minlength=len(classes)).tolist(),
        images=np.bincount(buckets, minlength=_BUCKETS).tolist(),
        names=_sum(buckets, mix_bits(keys)),
        labels=_sum(buckets, mix_bits(keys ^ by_class[source.labels])),
        contents=_sum(buckets, contents),
    )


def digest_rows(rows: NDArray[np.void]) -> str:
    """A digest of a shard's rows of an index (shard_index.ROW): sizes and labels of its images, in their order."""
    return hashlib.sha256(rows.view("<u4").reshape(-1, 3)[:, 1:].tobytes()).hexdigest()


def identify_rows(rows: NDArray[np.void], digests: Sequence[str], classes: Sequence[str]) -> Identity:
    """The identity of an index's rows (shard_index.ROW), from the `digest_rows` of each of its shards."""
    classes = [unicodedata.normalize("NFC", name) for name in classes]
    by_class = _class_numbers(classes)
    images, names, labels = (np.zeros(_BUCKETS, np.uint64) for _ in range(3))
    sizes = np.zeros(len(classes), np.int64)
    for start in range(0, len(rows), _PART):
        part = rows[start : start + _PART]
        keys = mix_bits(part["size"].astype(np.uint64))
        buckets = (keys % _BUCKETS).astype(np.int64)
        images += np.bincount(buckets, minlength=_BUCKETS).astype(np.uint64)
        np.add.at(names, buckets, mix_bits(keys))
        np.add.at(labels, buckets, mix_bits(keys ^ by_class[part["label"]]))
        sizes += np.bincount(part["label"], minlength=len(classes))
    digest = hashlib.sha256("".join(digests).encode() + b"\0".join(map(encode_name, classes)))
    half = np.uint64(1)  # as in `_sum`
    by_size, by_label = (names >> half).tolist(), (labels >> half).tolist()
    known = (images.tolist(), by_size, by_label, by_size)
    return Identity(digest.hexdigest(), classes, sizes.tolist(), *known, key="sizes")


def _class_numbers(classes: Sequence[str]) -> _Sums:
    return mix_bits(np.array([zlib.crc32(encode_name(name)) for name in classes], np.uint64))


def encode_name(name: str) -> bytes:
    if name.isascii():
        return name.encode()
    return unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")


def mix_bits(values: _Sums) -> _Sums:
    """Mixes the bits of 64-bit numbers, so that each bit affects all: splitmix64's finaliser (Steele et al.)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _sum(buckets: NDArray[np.int64], values: _Sums) -> list[int]:
    """Sums over each bucket's images, modulo 2^63 to fit a checkpoint's integers; independent of their order."""
    sums = np.zeros(_BUCKETS, np.uint64)
    np.add.at(sums, buckets, values)
    return (sums >> np.uint64(1)).tolist()


def _count(images: int, inexact: bool = True) -> str:
    least = "at least " if images > _EXACT and inexact else ""
    return f"{least}{images} {'image' if images == 1 else 'images'}"


def _compare_classes(ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
    if ours == theirs:
        return []
    gone, new = (
        [name for name in one if name not in other] for one, other in ((theirs, set(ours)), (ours, set(theirs)))
    )
    words = [
        f"class{'es' if len(names) > 1 else ''} {', '.join(repr(printable(name)) for name in names[:3])}"
        f"{f' and {len(names) - 3} more' if len(names) > 3 else ''} {what}"
        for names, what in ((new, "added"), (gone, "removed"))
        if names
    ]
    return words or ["the same classes in another order"]
