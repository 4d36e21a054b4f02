"""Writing a data set as WebDataset tar shards, its images resized beforehand if asked for."""

import io
import json
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.augment.view_params import draw_views
from deit_fast.data.sources.base import Source, read_image
from deit_fast.data.sources.classes import one_form, read_class_names
from deit_fast.data.sources.headers import open_image
from deit_fast.data.sources.open_index import read_shard
from deit_fast.data.sources.pixels import as_rgb
from deit_fast.data.sources.splits import Split
from deit_fast.recipe.sections import Augment
from deit_fast.runtime.errors import DataError, one_line
from deit_fast.runtime.files import atomic_path, write_json
from deit_fast.runtime.progress import progress

QUALITY = 95  # of the JPEG files written; the difference from the resized pixels is then about one level on average
_SAMPLED_SIZES = 1000
_VIEW_SIZE = 224


@dataclass(frozen=True)
class Written:
    """What `write_shards` has made."""

    images: int
    shards: int
    resized: int
    """Images that were resized and encoded again, of those written now; the others are stored byte for byte."""
    kept_shards: int
    """Shards found whole from an earlier call."""


def write_shards(
    source: Source, folder: Path, split: Split, size: int | None, per_shard: int, workers: int, seed: int = 0
) -> Written:
    """Writes `source` to folder/SPLIT-NNNNNN.tar with its index beside each and classes.txt, in a shuffled order.

    size: images whose shorter side is longer are resized to it, px (bicubic with antialiasing), and stored as JPEG of
    quality 95; None leaves all as they are. per_shard: images in a shard. workers: processes that write.

    A shard appears whole or not at all, and one that is there with the right labels is kept: run again, it goes on.
    Splits of one folder have the same classes. Every shard is read back and its labels compared. Raises DataError.
    """
    folder = Path(os.path.abspath(folder))
    order = np.random.RandomState(seed).permutation(len(source))
    parts = [order[start : start + per_shard] for start in range(0, len(order), per_shard)]
    paths = [folder / f"{split}-{number:06d}.tar" for number in range(len(parts))]
    try:
        _refuse_others(folder, split, paths)
        _write_classes(folder / "classes.txt", source)
        _same_call(folder / f"{split}.json", {"source": source.uri, "images": len(source), "size": size, "seed": seed})
        missing = [(path, part) for path, part in zip(paths, parts, strict=True) if not _holds(path, source, part)]
        resized = 0
        # Spawned: threads of DALI or of torch in this process would not survive a fork.
        with ProcessPoolExecutor(workers, get_context("spawn"), _take, (source,)) as pool:
            jobs = pool.map(_write_shard, *zip(*((path, part, size) for path, part in missing), strict=True))
            for count in progress(jobs, len(missing), f"write {split} shards") if missing else ():
                resized += count
    except OSError as error:
        raise DataError(f"{folder}: expected a folder to write shards to ({error.strerror or error})") from None
    wrong = next((path for path, part in zip(paths, parts, strict=True) if not _holds(path, source, part)), None)
    if wrong is not None:
        raise DataError(f"{wrong}: expected the images of {source.uri} that were written there, found others")
    return Written(len(source), len(paths), resized, len(paths) - len(missing))


def enlarged_share(sizes: NDArray[np.int32], seed: int = 0) -> float:
    """Share of RandomResizedCrop's views at 224 px that enlarge their crop, for images of `sizes` [N, 2] (h, w), px."""
    views = 10
    indices = np.repeat(np.arange(len(sizes)), views)
    drawn = draw_views(
        Augment(), _VIEW_SIZE, seed, 0, indices, np.tile(np.arange(views), len(sizes)), sizes[indices]
    ).geometry
    return float((drawn[:, 2:].min(axis=1) < _VIEW_SIZE).mean())


def describe_effect(source: Source, size: int) -> str:
    """What storing images at `size`, px, does to augmentation, in words, from a sample of the source's sizes."""
    chosen = np.linspace(0, len(source) - 1, min(len(source), _SAMPLED_SIZES)).astype(int)
    before = np.array([source.header(index, read_image(source, index))[:2] for index in chosen.tolist()], np.int32)
    shorter = before.min(axis=1, keepdims=True)
    after = np.where(shorter > size, before * size // shorter, before).astype(np.int32)
    return (
        f"crops are fractions of the image, so their areas and aspect ratios stay as they were; what changes is "
        f"sharpness: {100 * enlarged_share(before):.0f} % of RandomResizedCrop's views at {_VIEW_SIZE} px enlarge "
        f"their crop in {source.uri}, {100 * enlarged_share(after):.0f} % at {size} px"
    )


_source: Source


def _take(source: Source) -> None:
    global _source
    _source = source


def _write_shard(path: Path, indices: NDArray[np.int64], size: int | None) -> int:
    """One shard and its index; returns how many images were resized."""
    resized = 0
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in indices.tolist():
            data, suffix, changed = _encoded(index, size)
            resized += changed
            for name, content in ((suffix, data), (".cls", str(_source.labels[index]).encode())):
                member = tarfile.TarInfo(f"{index:08d}{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return resized


def _encoded(index: int, size: int | None) -> tuple[bytes, str, bool]:
    """Bytes and suffix of an image as it is stored, and whether it was resized."""
    data = read_image(_source, index)
    height, width, _ = _source.header(index, data)
    if size is None or min(height, width) <= size:
        return data.tobytes(), Path(_source.name(index)).suffix.lower(), False
    scale = size / min(height, width)
    try:
        with open_image(data) as image:
            small = as_rgb(image).resize(
                (max(size, int(width * scale)), max(size, int(height * scale))), Image.Resampling.BICUBIC
            )
    except Exception as error:  # PIL's decoders raise what they like
        raise DataError(f"{_source.name(index)}: expected an image that can be decoded ({one_line(error)})") from None
    stored = io.BytesIO()
    small.save(stored, "JPEG", quality=QUALITY)
    return stored.getvalue(), ".jpg", True


def _holds(path: Path, source: Source, indices: NDArray[np.int64]) -> bool:
    """Whether the shard is there, whole, with these images in this order."""
    if not path.exists():
        return False
    listing, _ = read_shard(path)
    if listing.refusal() is not None:
        return False
    stems = [Path(sample.member).stem for sample in listing.samples]
    keys = [int(stem) if stem.isdigit() else -1 for stem in stems]
    return keys == indices.tolist() and [each.label for each in listing.samples] == source.labels[indices].tolist()


def _write_classes(path: Path, source: Source) -> None:
    """Writes the names of the classes. Raises DataError where the shards of another split have other ones there."""
    ours = [name.strip() for name in one_form(source.classes)]  # as they are read
    if path.exists() and (there := read_class_names(path)) != ours:
        raise DataError(
            f"{path}: expected the {len(source.classes)} classes of {source.uri}, found {len(there)} others"
        )
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in source.classes), encoding="utf-8")


def _same_call(path: Path, call: dict[str, object]) -> None:
    """Notes what is written, so that going on with something else is refused."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else call
    if earlier != call:
        key = next(key for key in call if earlier.get(key) != call[key])
        raise DataError(f"{path}: expected {key} {earlier.get(key)!r} as its shards have it, got {call[key]!r}")
    write_json(path, call)


def _refuse_others(folder: Path, split: Split, paths: list[Path]) -> None:
    """Shards of another call would be read as part of this data set."""
    others = sorted(set(folder.glob(f"{split}-*.tar")) - set(paths)) if folder.is_dir() else []
    if others:
        raise DataError(f"{folder}: expected no shards but those written now, found {others[0].name}")
