"""The demo's data: real handwritten digits, from a package rather than a download."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from deit_fast.runtime.errors import DataError

TRAIN_IMAGES, VAL_IMAGES = 1437, 360
_SIDE = 64
_DIGIT_MAX = 16


def write_demo(folder: Path) -> Path:
    """Writes scikit-learn's 1,797 handwritten digits as a folder of JPEG images and returns `folder`.

    train/ holds 1,437 images and val/ 360, in equal proportions of each digit, RGB, enlarged from 8 x 8 to 64 x 64 px.
    The files are the same in every call; if all of them exist, nothing is written. The folder appears whole or not at
    all. Raises DataError without scikit-learn, or where the folder holds something else.
    """
    if _complete(folder):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: expected an empty or missing folder for the demo's digits, found something else")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(f"{folder}: the demo's digits come with scikit-learn; pip install 'deit_fast[demo]'") from None
    digits = load_digits()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            written = Path(temporary) / "digits"
            _write_images(written, digits.images, digits.target)
            os.replace(written, folder)
    except OSError as error:
        if not _complete(folder):  # another process may have finished first
            raise DataError(f"{folder}: expected a folder to write the demo's digits to ({error.strerror})") from None
    return folder


def _write_images(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """images: float [N, 8, 8] in [0, 16]; labels: int [N]."""
    from PIL import Image

    # In the order of class, spread the validation images evenly, so that every class has its share of them.
    place = np.empty(len(labels), np.int64)
    place[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    held_out = (place + 1) * VAL_IMAGES // len(labels) > place * VAL_IMAGES // len(labels)
    for split in ("train", "val"):
        for label in np.unique(labels):
            (folder / split / str(label)).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        grey = Image.fromarray((image * (255 / _DIGIT_MAX)).astype(np.float32))
        large = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
        pixels = np.rint(large).clip(0, 255).astype(np.uint8)  # bicubic interpolation overshoots at edges
        path = folder / ("val" if held_out[index] else "train") / str(label) / f"{index:04d}.jpg"
        Image.fromarray(pixels).convert("RGB").save(path, quality=95)


def _complete(folder: Path) -> bool:
    return all(
        sum(1 for _ in (folder / split).glob("*/*.jpg")) == count
        for split, count in (("train", TRAIN_IMAGES), ("val", VAL_IMAGES))
    )
