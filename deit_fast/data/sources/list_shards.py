"""Tar shards as far as they can be read, with all their faults listed: training refuses a shard at its first one."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import IMAGE_SUFFIXES, Source, read_bytes
from deit_fast.data.sources.classes import read_class_names
from deit_fast.data.sources.tar_shards import MAX_CLASSES, open_shard
from deit_fast.runtime.errors import one_line, printable
from deit_fast.runtime.patience import may_pass, patiently

_BLOCK = 512


class Sample(NamedTuple):
    """An image in a shard: the member's name, where its content is, in bytes, and its class."""

    member: str
    offset: int
    size: int
    label: int


class ListedShards(Source):
    """The sound samples of WebDataset shards, found by reading every header, as no index has a say."""

    def __init__(self, uri: str, shards: Sequence[Path]) -> None:
        names = shards[0].parent / "classes.txt"
        classes = read_class_names(names) if names.is_file() else []
        self.faults: list[tuple[str, str]] = []
        """Shard, printable, and what is wrong, in words; several of a shard may be."""
        self._shards, self._samples = [str(shard) for shard in shards], []
        for number, shard in enumerate(shards):
            listed, found, _ = list_samples(shard, len(classes) or MAX_CLASSES)
            found += [] if found else _disagreements(shard, listed)
            self._samples += [(number, sample) for sample in listed]
            self.faults += [(printable(str(shard)), fault) for fault in found]
        labels = np.array([sample.label for _, sample in self._samples], np.int64)
        super().__init__(uri, classes or [str(label) for label in range(labels.max(initial=-1) + 1)], labels)

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


def list_samples(shard: Path, classes: int) -> Listing:
    """Reads every header of the shard; labels of `classes` and more are faults.

    Raises StorageError where the storage goes on failing: that is no fault of the shard.
    """
    return patiently(lambda: _list_samples(shard, classes), str(shard))


def _list_samples(shard: Path, classes: int) -> Listing:
    samples: list[Sample] = []
    faults: list[str] = []
    cut: list[str] = []
    keys: set[str] = set()
    for key, members in groupby(_list_members(shard, cut), key=lambda member: _split(member.name)[0]):
        parts: dict[str, tarfile.TarInfo] = {}
        wrong: list[str] = []  # of this sample: reading on may find the shard's end missing meanwhile
        name = printable(key)
        for member in members:
            suffix = _split(member.name)[1]
            if suffix in parts:
                wrong.append(f"{printable(member.name)} is there twice in a row")
            parts[suffix] = member
        if key in keys:
            wrong.append(f"the key {name} is there twice")
        keys.add(key)
        image = next((part for suffix, part in parts.items() if f".{suffix}".lower() in IMAGE_SUFFIXES), None)
        label = _read_label(shard, parts["cls"], classes, wrong) if "cls" in parts else None
        if image is None:
            wrong.append(f"{name} has no image")
        if "cls" not in parts:
            wrong.append(f"{name} has no cls")
        if image is not None and label is not None and not wrong:
            samples.append(Sample(image.name, image.offset_data, image.size, label))
        faults += wrong
    return Listing(samples, faults + cut, not cut)


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
                if member.isreg() and not _split(member.name)[0].endswith("/") and _split(member.name)[0]:
                    yield member
        if (found := read_bytes(str(shard), end, _BLOCK).tobytes()) != bytes(_BLOCK):
            faults.append(f"cut off or damaged at byte {end} of {size}" if found else f"cut off at byte {size}")
    except (tarfile.TarError, OSError, ValueError) as error:
        if may_pass(error):
            raise
        faults.append(f"not a whole, uncompressed tar file, from byte {end} on ({one_line(error)})")


def _read_label(shard: Path, member: tarfile.TarInfo, classes: int, faults: list[str]) -> int | None:
    text = read_bytes(str(shard), member.offset_data, min(member.size, 64)).tobytes().decode("latin-1").strip()
    if text.isascii() and text.isdigit() and int(text) < classes:
        return int(text)
    faults.append(f"{printable(member.name)}: expected a class number below {classes}, found {text[:40]!r}")
    return None


def _disagreements(shard: Path, listed: list[Sample]) -> list[str]:
    """What opening the shard as training does says against it, where its members are all right."""
    try:
        opened = open_shard(shard)
    except ValueError as error:
        return [one_line(error).removeprefix(f"{shard}: ")]
    same = opened.labels.tolist() == [sample.label for sample in listed] and opened.places.tolist() == [
        [sample.offset, sample.size] for sample in listed
    ]
    return [] if same else ["its index has other images or labels than the shard; remove the .idx file"]


def _split(name: str) -> tuple[str, str]:
    """The key and the suffix, which starts at the first dot of the last part, as WebDataset has it."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return f"{folder}{slash}{stem}", suffix
