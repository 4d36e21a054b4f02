"""Writes a data set as WebDataset tar shards, with its images resized first if a size is given."""

import io
import json
import math
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.augment.view_params import draw_views
from deit_fast.data.sources.base import Source, read_image
from deit_fast.data.sources.classes import one_form, read_class_names
from deit_fast.data.sources.headers import open_image
from deit_fast.data.sources.merge_shards import Part, merge_parts
from deit_fast.data.sources.open_index import file_version, make_part, read_shard
from deit_fast.data.sources.pixels import as_rgb
from deit_fast.data.sources.shard_index import write_index
from deit_fast.data.sources.splits import Split
from deit_fast.data.sources.tar_reader import BLOCK, whole_blocks
from deit_fast.recipe.sections import Augment
from deit_fast.runtime.errors import DataError, one_line
from deit_fast.runtime.files import atomic_path, write_json
from deit_fast.runtime.progress import progress

QUALITY = 95  # quality of the JPEG files; they differ from the resized pixels by about one level on average
SHARD_BYTES = 128_000_000
"""Default size of a shard. Smaller shards mix better when blocks of them are shuffled; this is large enough to
fetch."""
_SAMPLED_SIZES = 1000
_SAMPLED_ENCODINGS = 200
_EARLIER_PER_SHARD = 2000  # for shards of earlier versions, which did not note the number
_VIEW_SIZE = 224


@dataclass(frozen=True)
class Written:
    """The result of `write_shards`."""

    images: int
    shards: int
    resized: int
    """How many of the images written now were resized and encoded again; the others are stored byte for byte."""
    kept_shards: int
    """The number of shards that an earlier call had written."""


def write_shards(
    source: Source, folder: Path, split: Split, size: int | None, per_shard: int | None, workers: int, seed: int = 0
) -> Written:
    """Writes `source` to folder/SPLIT-NNNNNN.tar in a shuffled order, with classes.txt and the index beside the shards.

    size: an image whose shorter side is longer than this is resized to it, px (bicubic with antialiasing), and stored
    as JPEG of quality 95; None leaves all images as they are. per_shard: images in a shard; by default as many as make
    128 MB, estimated from a sample of the images. workers: number of writing processes.

    A shard appears whole or not at all. An existing shard with the right images and labels is kept, so that a second
    call continues an interrupted one. All splits in a folder must have the same classes. Every shard is read back and
    its labels are compared. Raises DataError.
    """
    folder = Path(os.path.abspath(folder))
    call = {"source": source.uri, "images": len(source), "size": size, "seed": seed}
    per_shard = per_shard or _earlier_per_shard(folder / f"{split}.json") or _images_of(SHARD_BYTES, source, size)
    order = np.random.RandomState(seed).permutation(len(source))
    parts = [order[start : start + per_shard] for start in range(0, len(order), per_shard)]
    paths = [folder / f"{split}-{number:06d}.tar" for number in range(len(parts))]
    try:
        _refuse_others(folder, split, paths)
        _write_classes(folder / "classes.txt", source)
        _same_call(folder / f"{split}.json", {**call, "per_shard": per_shard})
        found = [_read_back(path, part, source.labels[part]) for path, part in zip(paths, parts, strict=True)]
        missing = [number for number, shard in enumerate(found) if shard is None]
        resized = 0
        # Processes are spawned, because threads of DALI or torch in this process would not survive a fork.
        with _coming(source), ProcessPoolExecutor(workers, get_context("spawn"), _take, (source,)) as pool:
            jobs = pool.map(
                partial(_write_shard, size=size), *zip(*((paths[n], parts[n]) for n in missing), strict=True)
            )
            written = progress(jobs, len(missing), f"write {split} shards") if missing else ()
            for number, (shard, count) in zip(missing, written, strict=True):
                found[number] = shard
                resized += count
        shards = [shard for shard in found if shard is not None]
        index = merge_parts(shards, list(map(str, paths)), read_class_names(folder / "classes.txt"))
        write_index(index, folder, split)
    except OSError as error:
        raise DataError(f"{folder}: expected a folder to write shards to ({error.strerror or error})") from None
    return Written(len(source), len(paths), resized, len(paths) - len(missing))


@contextmanager
def _coming(source: Source) -> Iterator[None]:
    """Fetches shards of a store to the disk, as far as there is room, while their images are read in any order."""
    count = len(source.shard_edges) - 1 if source.shard_edges is not None else 0
    source.expect(np.arange(count), 0)
    try:
        yield
    finally:
        source.expect(np.arange(0), 0)


def enlarged_share(sizes: NDArray[np.int32], seed: int = 0) -> float:
    """Fraction of RandomResizedCrop's views at 224 px that enlarge their crop; sizes: [N, 2], height and width, px."""
    views = 10
    indices = np.repeat(np.arange(len(sizes)), views)
    drawn = draw_views(
        Augment(), _VIEW_SIZE, seed, 0, indices, np.tile(np.arange(views), len(sizes)), sizes[indices]
    ).geometry
    return float((drawn[:, 2:].min(axis=1) < _VIEW_SIZE).mean())


def describe_effect(source: Source, size: int) -> str:
    """The effect on augmentation of storing images at `size`, px, in words, from a sample of the source's sizes."""
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


def _write_shard(path: Path, indices: NDArray[np.int64], size: int | None) -> tuple[Part, int]:
    """Writes one shard; returns its index entry, and the number of images that were resized."""
    resized = 0
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in indices.tolist():
            data, suffix, changed = _encoded(_source, index, size)
            resized += changed
            for name, content in ((suffix, data), (".cls", str(_source.labels[index]).encode())):
                member = tarfile.TarInfo(f"{index:08d}{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    part = _read_back(path, indices, _source.labels[indices])
    if part is None:
        raise DataError(f"{path}: expected the images of {_source.uri} that were written there, found others")
    return part, resized


def _encoded(source: Source, index: int, size: int | None) -> tuple[bytes, str, bool]:
    """Bytes and suffix of an image as it is to be stored, and whether it was resized."""
    data = read_image(source, index)
    height, width, _ = source.header(index, data)
    if size is None or min(height, width) <= size:
        return data.tobytes(), Path(source.name(index)).suffix.lower(), False
    scale = size / min(height, width)
    try:
        with open_image(data) as image:
            small = as_rgb(image).resize(
                (max(size, int(width * scale)), max(size, int(height * scale))), Image.Resampling.BICUBIC
            )
    except Exception as error:  # PIL's decoders raise many kinds of exceptions
        raise DataError(f"{source.name(index)}: expected an image that can be decoded ({one_line(error)})") from None
    stored = io.BytesIO()
    small.save(stored, "JPEG", quality=QUALITY)
    return stored.getvalue(), ".jpg", True


def _read_back(path: Path, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> Part | None:
    """The shard's index entry; None unless it exists as a whole with these images and labels in this order."""
    if not path.exists():
        return None
    listing, status = read_shard(path)
    stems = [Path(sample.member).stem for sample in listing.samples]
    keys = [int(stem) if stem.isdigit() else -1 for stem in stems]
    same = keys == indices.tolist() and [sample.label for sample in listing.samples] == labels.tolist()
    if listing.refusal() is not None or not same:
        return None
    return make_part(path.name, listing, status.st_size, file_version(status))


def _images_of(shard_bytes: int, source: Source, size: int | None) -> int:
    """How many images make a shard of `shard_bytes`, if all shards are alike, estimated from a sample as stored."""
    sampled = min(len(source), _SAMPLED_SIZES if size is None else _SAMPLED_ENCODINGS)
    chosen = np.linspace(0, len(source) - 1, sampled).astype(int).tolist()
    stored = [len(_encoded(source, index, size)[0]) for index in chosen]
    sample = float(np.mean([BLOCK + whole_blocks(each) + 2 * BLOCK for each in stored]))  # and its label
    shards = max(1, math.ceil(len(source) * sample / shard_bytes))
    return -(-len(source) // shards)


def _earlier_per_shard(path: Path) -> int | None:
    """Images in a shard of the earlier call that this one continues; None without an earlier call."""
    return _read_call(path).get("per_shard", _EARLIER_PER_SHARD) if path.exists() else None


def _read_call(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected what an earlier call noted of its shards, found something else; remove it")
    return content


def _write_classes(path: Path, source: Source) -> None:
    """Writes the names of the classes. Raises DataError where another split's shards there have other classes."""
    ours = [name.strip() for name in one_form(source.classes)]  # in the form in which they are read
    if path.exists() and (there := read_class_names(path)) != ours:
        raise DataError(
            f"{path}: expected the {len(source.classes)} classes of {source.uri}, found {len(there)} others"
        )
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in source.classes), encoding="utf-8")


def _same_call(path: Path, call: dict[str, object]) -> None:
    """Notes the arguments of the call, so that continuing with other arguments is refused."""
    earlier = _read_call(path) if path.exists() else call
    key = next((key for key in call if earlier.get(key, call[key]) != call[key]), None)
    if key is not None:
        raise DataError(f"{path}: expected {key} {earlier.get(key)!r} as its shards have it, got {call[key]!r}")
    write_json(path, call)


def _refuse_others(folder: Path, split: Split, paths: list[Path]) -> None:
    """Raises DataError for shards of another call: they would be read as part of this data set."""
    others = sorted(set(folder.glob(f"{split}-*.tar")) - set(paths)) if folder.is_dir() else []
    if others:
        raise DataError(f"{folder}: expected no shards but those written now, found {others[0].name}")
