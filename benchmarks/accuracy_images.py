"""The image folders that `accuracy` trains on: cuts of a data set, and the demo's digits."""

from pathlib import Path
from typing import Literal

import numpy as np

from deit_fast.data.sources.open import open_source
from deit_fast.data.tools.demo import TRAIN_IMAGES, write_demo

from .accuracy_cases import Cut


def write_images(data: str, cut: Cut | None, folder: Path) -> int:
    """Writes an image folder with the splits train and val, unless it exists; returns the number of training images.

    data: URI of a data set with both splits. cut: the part of it that is taken, with all validation images of the same
    classes; None writes the demo's digits instead. The files are the data's own bytes. Raises DataError where the data
    are unreadable.
    """
    if cut is None:
        write_demo(folder)
        return TRAIN_IMAGES
    written = _write_split(data, "train", cut.per_class, cut, folder)
    _write_split(data, "val", None, cut, folder)
    return written


def _write_split(data: str, split: Literal["train", "val"], per_class: int | None, cut: Cut, folder: Path) -> int:
    source = open_source(data, split)
    labels = range(cut.first, len(source.classes), cut.step)
    chosen = [index for label in labels for index in np.flatnonzero(source.labels == label)[:per_class].tolist()]
    if (folder / split).exists():
        return len(chosen)
    for index in chosen:
        path = folder / split / source.classes[source.labels[index]] / f"{index:06}{Path(source.name(index)).suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read(index).tobytes())
    return len(chosen)
