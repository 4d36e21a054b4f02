"""Tar shards as far as they can be read, with all their faults listed: training refuses a shard at its first one."""

import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source, read_bytes
from deit_fast.data.sources.classes import read_class_names
from deit_fast.data.sources.samples import MAX_CLASSES, folder_of, pair_members, parse_label, split_name
from deit_fast.data.sources.shard_index import open_shard
from deit_fast.data.sources.tar_shards import merge_labels
from deit_fast.runtime.errors import one_line, printable
from deit_fast.runtime.patience import may_pass, patiently

_BLOCK = 512


class Sample(NamedTuple):
    """An image in a shard: the member's name, where its content is, in bytes, and its class, or the folder's name."""

    member: str
    offset: int
    size: int
    label: int | str


class ListedShards(Source):
    """The sound samples of WebDataset shards, found by reading every header, as no index has a say."""

    def __init__(self, uri: str, shards: Sequence[Path]) -> None:
        names = shards[0].parent / "classes.txt"
        named = read_class_names(names) if names.is_file() else []
        label_of = {name: label for label, name in enumerate(named)}
        self.faults: list[tuple[str, str]] = []
        """Shard, printable, and what is wrong, in words; several of a shard may be."""
        self._shards, self._samples = [str(shard) for shard in shards], []
        parts = []
        listings = [list_samples(shard, len(named) or MAX_CLASSES, label_of) for shard in shards]
        numbered = any(isinstance(sample.label, int) for listing in listings for sample in listing.samples)
        for number, (shard, listing) in enumerate(zip(shards, listings, strict=True)):
            listed, found, _ = without_folders(listing) if numbered else listing
            found += [] if found else _disagreements(shard, listed, label_of)
            self._samples += [(number, sample) for sample in listed]
            self.faults += [(printable(str(shard)), fault) for fault in found]
            parts.append(label_samples(listed))
        super().__init__(uri, *merge_labels(shards, parts, named))
        self.counted = not named and not any(folders for _, folders in parts)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as stored in its shard, uint8 [bytes]. Raises DataError where the shard cannot be read."""
        shard, sample = self._samples[index]
        return read_bytes(self._shards[shard], sample.offset, sample.size)

    def name(self, index: int) -> str:
        shard, sample = self._samples[index]
        return f"{self._shards[shard]}:{sample.member}"


class Listing(NamedTuple):
    """The samples of a shard that are whole, and what is wrong with the rest, in words."""

    samples: list[Sample]
    faults: list[str]
    ends: bool
    """Whether it can be read to the end that tar files have, so that nothing is missing there."""


def list_samples(shard: Path, classes: int, label_of: Mapping[str, int]) -> Listing:
    """Reads every header of the shard; labels of `classes` and more are faults, names of `label_of` are labels.

    Raises StorageError where the storage goes on failing: that is no fault of the shard.
    """
    return patiently(lambda: _list_samples(shard, classes, label_of), str(shard))


def _list_samples(shard: Path, classes: int, label_of: Mapping[str, int]) -> Listing:
    samples: list[Sample] = []
    by_folder: list[Sample] = []  # images without a label
    faults: list[str] = []
    unlabelled: set[int] = set()  # places of their faults
    cut: list[str] = []
    keys: set[str] = set()
    labelled = False
    for key, members in groupby(_list_members(shard, cut), key=lambda member: split_name(member.name)[0]):
        parts: dict[str, tarfile.TarInfo] = {}
        wrong: list[str] = []  # of this sample: reading on may find the shard's end missing meanwhile
        name = printable(key)
        for member in members:
            if member.name in parts:
                wrong.append(f"{printable(member.name)} is there twice in a row")
            parts[member.name] = member
        if key in keys:
            wrong.append(f"the key {name} is there twice")
        keys.add(key)
        try:
            pairs = pair_members(list(parts))
        except ValueError as error:
            pairs = []
            wrong.append(one_line(error))
        found: list[Sample] = []
        for image, label in pairs:
            labelled |= label is not None
            value = None if label is None else _read_label(shard, parts[label], classes, label_of, wrong)
            if image is None:
                wrong.append(f"{name} has no image")
            elif label is None:
                member = parts[image]
                folder = folder_of(image)
                by_folder += [Sample(image, member.offset_data, member.size, folder)] if folder and not wrong else []
                unlabelled.add(len(faults) + len(wrong))
                wrong.append(f"{name} has no cls")
            elif value is not None:
                found.append(Sample(image, parts[image].offset_data, parts[image].size, value))
            if image is None and label is None:
                wrong.append(f"{name} has no cls")
        samples += [] if wrong else found
        faults += wrong
    if not labelled and by_folder and len(by_folder) == len(unlabelled):
        samples, faults = by_folder, [fault for place, fault in enumerate(faults) if place not in unlabelled]
    return Listing(samples, faults + cut, not cut)


def without_folders(listing: Listing) -> Listing:
    """The listing where folders are no labels, as other shards have numbers: what only has a folder lacks a label."""
    kept = [sample for sample in listing.samples if isinstance(sample.label, int)]
    lacking = [split_name(sample.member)[0] for sample in listing.samples if isinstance(sample.label, str)]
    return Listing(kept, [f"{printable(key)} has no cls" for key in lacking] + listing.faults, listing.ends)


def label_samples(samples: Sequence[Sample]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The labels [n] of a shard's samples, and the folders that they stand for, if any."""
    folders = tuple(sorted({sample.label for sample in samples if isinstance(sample.label, str)}))
    index_of: dict[int | str, int] = {name: index for index, name in enumerate(folders)}
    return np.array([index_of.get(sample.label, sample.label) for sample in samples], np.int64), folders


def _list_members(shard: Path, faults: list[str]) -> Iterator[tarfile.TarInfo]:
    """Files of the archive, hidden ones left out, up to its end or where it is damaged."""
    end = 0
    try:
        with tarfile.open(shard, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            size = os.stat(shard).st_size
            while (member := archive.next()) is not None:
                end = archive.offset
                if member.offset_data + member.size > size:
                    break
                if member.isreg() and not split_name(member.name)[0].endswith("/") and split_name(member.name)[0]:
                    yield member
        if (found := read_bytes(str(shard), end, _BLOCK).tobytes()) != bytes(_BLOCK):
            faults.append(f"cut off or damaged at byte {end} of {size}" if found else f"cut off at byte {size}")
    except (tarfile.TarError, OSError, ValueError) as error:
        if may_pass(error):
            raise
        faults.append(f"not a whole, uncompressed tar file, from byte {end} on ({one_line(error)})")


def _read_label(
    shard: Path, member: tarfile.TarInfo, classes: int, label_of: Mapping[str, int], faults: list[str]
) -> int | None:
    data = read_bytes(str(shard), member.offset_data, member.size).tobytes()
    try:
        number = parse_label(member.name, data, label_of)
        reason = f"found {str(number)!r}"
    except ValueError as error:
        number, reason = classes, str(error)
    if number < classes:
        return number
    faults.append(f"{printable(member.name)}: expected a class number below {classes}, {reason}")
    return None


def _disagreements(shard: Path, listed: list[Sample], label_of: Mapping[str, int]) -> list[str]:
    """What opening the shard as training does says against it, where its members are all right."""
    try:
        opened = open_shard(shard, label_of)
    except ValueError as error:
        return [one_line(error).removeprefix(f"{shard}: ")]
    labels, folders = label_samples(listed)
    same = opened.labels.tolist() == labels.tolist() and opened.folders == folders
    same = same and opened.places.tolist() == [[sample.offset, sample.size] for sample in listed]
    return [] if same else ["its index has other images or labels than the shard; remove the .idx file"]
