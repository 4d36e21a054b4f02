"""Checks every image of a data set before a run: counts them, and finds those that a run could not use."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deit_fast.data.loader.broken import describe_refusal, find_refused, without_name
from deit_fast.data.sources.base import Source, read_image
from deit_fast.data.sources.headers import image_format
from deit_fast.data.sources.list_shards import ListedShards
from deit_fast.data.sources.open import open_source
from deit_fast.data.sources.splits import Split
from deit_fast.runtime.errors import DataError, printable
from deit_fast.runtime.progress import progress

_CHUNK = 256  # number of images that are read ahead while as many are decoded
_DECODED_PIXELS = 2**28  # pixels that are decoded at a time, so that large images do not fill the memory
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Checked:
    """The findings of `check_source` about N images."""

    images: int
    classes: int
    bytes: int
    """Bytes of all images as stored."""
    formats: dict[str, int]
    """The number of images of each format; the format is told by an image's first bytes."""
    sizes: NDArray[np.int32]
    """[n, 2], height and width of the images with a readable header."""
    bad: list[tuple[str, str]]
    """Images and shards that cannot be used: printable name, and reason."""

    def as_text(self) -> str:
        """The report: a line for each fact and each bad image; sizes in pixels."""
        lines = [f"{self.images} images of {self.classes} classes, {self.bytes / 2**20:.1f} MiB"]
        lines.append(", ".join(f"{count} {name}" for name, count in sorted(self.formats.items())) or "no formats")
        if len(self.sizes):
            sides = ((name, np.percentile(self.sizes[:, side], (0, 50, 100))) for side, name in enumerate(_SIDES))
            lines += [f"{name}: {low:.0f} to {high:.0f} px, median {middle:.0f}" for name, (low, middle, high) in sides]
        lines.append(f"{len(self.bad)} cannot be used" + (":" if self.bad else ""))
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.bad])


_SIDES = ("height", "width")


def open_to_check(uri: str, split: Split, labels: str | Path | None = None) -> Source:
    """Like open_source, but opens shards that open_source refuses as far as they are readable, with their `faults`."""
    return open_source(uri, split, open_shards=ListedShards, labels=labels)


def check_source(source: Source, threads: int) -> Checked:
    """Reads every image and decodes it as a whole on the CPU, in the way DALI does it in training and evaluation.

    threads: number of reading threads, and of DALI's CPU threads. Raises RunError where DALI is missing, and
    StorageError where the storage goes on failing, which says nothing about the images.
    """
    bad = list(source.faults) if isinstance(source, ListedShards) else []
    formats: Counter[str] = Counter()
    sizes, size = [], 0
    for image in progress(_decode_all(source, threads), len(source), f"check {source.uri}"):
        size += len(image.stored)
        formats[image_format(image.stored) or "unknown"] += 1
        if isinstance(image.size, DataError):
            bad.append((printable(source.name(image.number)), without_name(source, image.number, image.size)))
        else:
            sizes.append(image.size)
    shapes = np.array(sizes, np.int32).reshape(-1, 2)
    return Checked(len(source), len(source.classes), size, dict(formats), shapes, bad)


class _Loaded(NamedTuple):
    number: int
    stored: NDArray[np.uint8]
    """The file, uint8 [bytes]."""
    encoded: NDArray[np.uint8]
    """The file that DALI gets: the image's own file, except for kinds that DALI decodes wrongly."""
    size: tuple[int, int] | DataError
    """Height and width, or the reason why the image cannot be used."""


def _decode_all(source: Source, threads: int) -> Iterator[_Loaded]:
    """All images in order; an image that cannot be used has a DataError in the place of its size."""

    def load(index: int) -> _Loaded:
        stored = np.empty(0, np.uint8)
        try:
            stored = read_image(source, index)
            return _Loaded(index, stored, *source.prepare(index, stored))
        except DataError as error:
            return _Loaded(index, stored, stored, error)

    chunks = [range(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        coming = pool.map(load, chunks[0]) if chunks else iter(())
        for following in (*chunks[1:], range(0)):
            loaded, coming = list(coming), pool.map(load, following)
            yield from _decode(source, loaded, threads)


def _decode(source: Source, loaded: list[_Loaded], threads: int) -> Iterator[_Loaded]:
    pixels = np.cumsum([0 if isinstance(image.size, DataError) else image.size[0] * image.size[1] for image in loaded])
    edges = np.flatnonzero(np.diff(pixels // _DECODED_PIXELS, prepend=-1, append=-1))
    for start, stop in pairwise(edges.tolist()):
        part = loaded[start:stop]
        sound = [place for place, image in enumerate(part) if not isinstance(image.size, DataError)]
        refused = {sound[each] for each in find_refused([part[place].encoded for place in sound], None, _CPU, threads)}
        for place, image in enumerate(part):
            if place in refused:
                refusal = DataError(describe_refusal(source, image.number, image.stored))
                image = image._replace(size=refusal)
            yield image


def write_bad(path: Path, bad: list[tuple[str, str]]) -> None:
    """Writes a line for each bad image or shard: name, tab, reason. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\t{reason}\n" for name, reason in bad), encoding="utf-8")
