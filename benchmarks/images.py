"""The images for timing loaders: those of --data, or generated ones."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.open import open_source

CLASSES = 4
GENERATED = {True: 96, False: 512}  # with --quick and without


class Sample(Source):
    """At most `limit` images of a source, evenly spread over it, with their own classes."""

    def __init__(self, source: Source, limit: int) -> None:
        count = min(limit, len(source))
        self._places = np.arange(count) * len(source) // count
        self._source = source
        super().__init__(source.uri, source.classes, source.labels[self._places])

    def read(self, index: int) -> NDArray[np.uint8]:
        return self._source.read(int(self._places[index]))

    def name(self, index: int) -> str:
        return self._source.name(int(self._places[index]))


def write_images(folder: Path, count: int) -> None:
    """Writes an image folder of JPEGs with about ImageNet's sizes: random structure at every scale, quality 90."""
    rng = np.random.default_rng(0)
    for index in range(count):
        width, height = (500, 375) if index % 3 else (375, 500)
        picture: NDArray[np.floating[Any]] = np.zeros((height, width, 3), np.float32)
        for scale in (4, 16, 64):
            noise = rng.integers(0, 256, (scale, scale, 3)).astype(np.uint8)
            picture += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        picture = picture / 3 + rng.normal(0, 6, picture.shape).astype(np.float32)
        path = folder / f"class{index % CLASSES}" / f"{index:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=90)


@contextlib.contextmanager
def open_images(uri: str | None, quick: bool, limit: int) -> Iterator[tuple[Source, str]]:
    """A source of at most `limit` images, and their origin in words."""
    if uri is not None:
        source = Sample(open_source(uri, "train"), limit)
        yield source, f"{len(source)} images of {Path(uri).name}"
        return
    with tempfile.TemporaryDirectory(prefix="deit-fast-images-") as folder:
        write_images(Path(folder), GENERATED[quick])
        source = Sample(open_source(folder), limit)
        yield source, f"{len(source)} generated JPEGs of 500 x 375 px, not photographs"
