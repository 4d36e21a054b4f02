"""Lists the samples of one tar shard as far as it is readable, and all its faults; training refuses the first fault."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.samples import (
    LABEL_ENDINGS,
    MAX_CLASSES,
    RULE,
    folder_of,
    pair_members,
    parse_label,
    split_name,
)
from deit_fast.data.sources.shard_index import LARGEST, ROW
from deit_fast.data.sources.tar_reader import BLOCK, DamagedError, Member, TarReader
from deit_fast.runtime.errors import one_line, printable

_NO_TAR = "not a whole, uncompressed tar file"
_NO_MEMBERS = "an uncompressed .tar of KEY.jpg and KEY.cls, found no members"
_MAX_LABEL = 2**24  # largest label member that is read, bytes
_LABEL_SUFFIXES = tuple(f".{ending}" for ending in LABEL_ENDINGS)
_LONGEST = max(map(len, _LABEL_SUFFIXES))


class Sample(NamedTuple):
    """An image in a shard: its member's name, offset and bytes of its content, its class or its folder's name."""

    member: str
    offset: int
    size: int
    label: int | str


class Fault(NamedTuple):
    """A fault of a shard."""

    words: str
    expected: str
    """The fault in the words of an error message, after the shard's name and "expected"."""


class Listing(NamedTuple):
    """A shard's whole samples, and its faults."""

    samples: list[Sample]
    faults: list[Fault]
    repeats: list[str]
    """Keys that occur again later in the shard: no fault when the shard is opened, but reported by `data check`."""
    ends: bool
    """Whether the shard is readable up to a tar file's end marker, so that no member is missing at the end."""
    by_name: bool
    """Whether a label was given as the name of a class."""

    def refusal(self) -> str | None:
        """The first fault as an error message states it; None for a sound shard."""
        if not self.ends:
            return self.faults[-1].expected
        return self.faults[0].expected if self.faults else None if self.samples else _NO_MEMBERS

    def rows(self) -> tuple[NDArray[np.void], tuple[str, ...]]:
        """ROW [n] of the samples, and the folders that their labels stand for, if there are any."""
        rows = np.empty(len(self.samples), ROW)
        folders = tuple(sorted({sample.label for sample in self.samples if isinstance(sample.label, str)}))
        index_of: dict[int | str, int] = {name: index for index, name in enumerate(folders)}
        rows["offset"] = [sample.offset // BLOCK for sample in self.samples]
        rows["size"] = [min(sample.size, LARGEST) for sample in self.samples]  # reading refuses such sizes
        rows["label"] = [index_of.get(sample.label, sample.label) for sample in self.samples]
        return rows, folders


def list_samples(shard: TarReader, classes: int = MAX_CLASSES, label_of: Mapping[str, int] | None = None) -> Listing:
    """Reads every header of the shard. Labels from `classes` on are faults; names in `label_of` are labels.

    Raises what reading raises.
    """
    label_of = label_of or {}
    samples: list[Sample] = []
    by_folder: list[Sample] = []  # images without a label
    faults: list[Fault] = []
    unlabelled: set[int] = set()  # places of their faults in the list
    cut: list[Fault] = []
    keys: set[str] = set()
    repeats: list[str] = []
    labelled = by_name = False
    for key, group in groupby(_files(shard, cut), key=itemgetter(0)):
        members = [(member, data) for _, member, data in group]
        parts = {member.name: (member, data) for member, data in members}
        wrong = _repeated(members) if len(parts) < len(members) else []  # repeated members of this sample
        if key in keys:
            repeats.append(f"the key {printable(key)} is there twice")
        keys.add(key)
        try:
            pairs = pair_members(list(parts))
        except ValueError as error:
            pairs = []
            wrong.append(Fault(one_line(error), f"one image and its label for a key, {one_line(error)}"))
        found: list[Sample] = []
        for image, label in pairs:
            value = None
            if label is not None:
                labelled = True
                value = _read_label(*parts[label], image or label, classes, label_of, wrong)
                by_name = by_name or (bool(label_of) and value is not None and not _is_number(label, parts[label][1]))
            if image is None:
                wrong.append(_lacks(key, "image" if label is not None else "cls"))
            elif label is None:
                (member, _), folder = parts[image], folder_of(image)
                by_folder += [Sample(image, member.offset, member.size, folder)] if folder and not wrong else []
                unlabelled.add(len(faults) + len(wrong))
                wrong.append(_lacks(image.rpartition(".")[0] if len(pairs) > 1 else key, "cls"))
            elif value is not None:
                member = parts[image][0]
                found.append(Sample(image, member.offset, member.size, value))
        if wrong:
            faults += wrong
        else:
            samples += found
    if not labelled and by_folder and len(by_folder) == len(unlabelled):
        samples, faults = by_folder, [fault for place, fault in enumerate(faults) if place not in unlabelled]
    return Listing(samples, faults + cut, repeats, not cut, by_name)


def without_folders(listing: Listing) -> Listing:
    """The listing for shards whose labels are numbers: a sample with only a folder for a label lacks a label."""
    kept = [sample for sample in listing.samples if isinstance(sample.label, int)]
    lacking = [split_name(sample.member)[0] for sample in listing.samples if isinstance(sample.label, str)]
    return listing._replace(samples=kept, faults=[_lacks(key, "cls") for key in lacking] + listing.faults)


def _files(shard: TarReader, cut: list[Fault]) -> Iterator[tuple[str, Member, bytes]]:
    """Key of each file of the archive, the member, and its content if it may be a label; hidden files are left out.

    Stops at the end of the archive or where it is damaged. The content is read here, because a shard from a network is
    read only once, from front to back.
    """
    end = 0
    try:
        for member in shard.members():
            end = member.offset + member.size
            key = split_name(member.name)[0]
            if key and key[-1] != "/":
                is_label = member.name[-_LONGEST:].lower().endswith(_LABEL_SUFFIXES) and member.size <= _MAX_LABEL
                yield key, member, shard.read(member.offset, member.size) if is_label else b""
    except DamagedError as error:
        whole = f"a whole tar file, found it {error}"
        cut.append(Fault(str(error), whole) if end else Fault(_NO_TAR, _NO_MEMBERS))


def _repeated(members: Sequence[tuple[Member, bytes]]) -> list[Fault]:
    seen, faults = set[str](), []
    for member, _ in members:
        if member.name in seen:  # it is unclear which label belongs to which image
            words = f"{printable(member.name)} is there twice in a row"
            faults.append(Fault(words, f"every name once, {words}"))
        seen.add(member.name)
    return faults


def _lacks(key: str, what: str) -> Fault:
    words = f"{printable(key)} has no {what}"
    return Fault(words, f"KEY.jpg and KEY.cls side by side, {words} ({RULE})")


def _read_label(
    member: Member, data: bytes, image: str, classes: int, label_of: Mapping[str, int], faults: list[Fault]
) -> int | None:
    try:
        if member.size > _MAX_LABEL:
            raise ValueError(f"found {member.size} bytes")
        number = parse_label(member.name, data, label_of)
        if number < classes:
            return number
        reason = f"found {str(number)!r}"
    except ValueError as error:
        reason = one_line(error)
    by_name = "" if label_of else " (to give classes by name, name all of them in classes.txt beside the shards)"
    ending, name = member.name.rpartition(".")[2], printable(member.name)
    faults.append(
        Fault(
            f"{name}: expected a class number below {classes}, {reason}",
            f"a class number in the .{ending} of {printable(image)}, {reason}{by_name}",
        )
    )
    return None


def _is_number(label: str, data: bytes) -> bool:
    """Whether a label gives its class by number, so that its meaning does not depend on the classes' names."""
    try:
        return data.isdigit() or parse_label(label, data, {}) >= 0
    except ValueError:
        return False
