"""Labelled images as they are stored: a folder per class, or WebDataset tar shards. Encoded bytes come out."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.header import IMAGE_SUFFIXES, image_size
from deit_fast.data.shards import open_shard
from deit_fast.errors import DataError
from deit_fast.progress import progress

Split = Literal["train", "val"]

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SHARD_NUMBER = re.compile(r"(.*?)(\d+)((?:-of-\d+)?\.tar)")
_OPENING_THREADS = 8


class Source(ABC):
    """N encoded images with a class each. Reading is safe from several threads."""

    def __init__(self, uri: str, classes: list[str], labels: NDArray[np.int64]) -> None:
        self.uri = uri
        self.classes = classes
        self.labels = labels
        """int64 [N], indices into classes."""
        self._sizes = np.zeros((len(labels), 2), np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> NDArray[np.uint8]:
        """The bytes of image `index`, encoded as stored; read-only. Raises DataError where it cannot be read."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where image `index` is, for people: a path, or shard.tar:member."""

    def size(self, index: int, encoded: NDArray[np.uint8]) -> tuple[int, int]:
        """Height and width in pixels of image `index`, whose bytes are `encoded`; read once, then remembered.

        As stored: an EXIF rotation is not applied. Raises DataError where the header cannot be read.
        """
        height, width = self._sizes[index].tolist()
        if not height:
            try:
                height, width = image_size(encoded)
            except ValueError as error:
                raise DataError(f"{self.name(index)}: expected an image, found {error}") from None
            self._sizes[index] = height, width
        return height, width


class ImageFolder(Source):
    """folder/class/**/image.jpg, in torchvision's order: classes by name, then images by folder and name."""

    def __init__(self, uri: str, folder: Path) -> None:
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        if not classes:
            raise DataError(f"{folder}: expected a folder of images for every class, or .tar shards; found neither")
        self._paths: list[str] = []
        counts = []
        for name in classes:
            paths = _list_images(os.path.join(folder, name))
            if not paths:
                raise DataError(
                    f"{folder / name}: expected images ({', '.join(IMAGE_SUFFIXES)}) in every class folder, none found"
                )
            self._paths += paths
            counts.append(len(paths))
        super().__init__(uri, classes, np.repeat(np.arange(len(classes)), counts))

    def read(self, index: int) -> NDArray[np.uint8]:
        return _read_bytes(self._paths[index])

    def name(self, index: int) -> str:
        return self._paths[index]


class TarShards(Source):
    """WebDataset shards of KEY.jpg and KEY.cls (the class, as an ASCII integer), in the order given.

    classes.txt beside the first shard names the classes; without it they are "0" up to the largest label.
    """

    def __init__(self, uri: str, shards: Sequence[Path]) -> None:
        try:
            with ThreadPoolExecutor(_OPENING_THREADS) as pool:
                opened = list(progress(pool.map(open_shard, shards), len(shards), "open shards"))
        except ValueError as error:
            raise DataError(str(error)) from None
        self._shards = [str(shard) for shard in shards]
        self._members = [member for shard in opened for member in shard.members]
        self._shard_of = np.repeat(np.arange(len(shards)), [len(shard.members) for shard in opened])
        self._places = np.concatenate([shard.places for shard in opened])
        labels = np.concatenate([shard.labels for shard in opened])
        super().__init__(uri, _class_names(shards[0].parent / "classes.txt", int(labels.max())), labels)

    def read(self, index: int) -> NDArray[np.uint8]:
        offset, size = self._places[index].tolist()
        data = _read_bytes(self._shards[self._shard_of[index]], offset, size)
        if len(data) < size:
            raise DataError(f"{self.name(index)}: expected {size} bytes, found {len(data)}; the shard changed")
        return data

    def name(self, index: int) -> str:
        return f"{self._shards[self._shard_of[index]]}:{self._members[index]}"


def open_source(uri: str, split: Split | None = None) -> Source:
    """Open labelled images; nothing but directories, shard indexes and labels is read.

    uri: a folder of class folders, a folder of .tar shards, one .tar, a brace range (train-{0000..0009}.tar) or a glob
    of them. `split` takes train/ or val/ of a folder that has both, and train-*.tar or val-*.tar of a folder of shards.
    Raises DataError.
    """
    path = Path(uri).expanduser()
    if path.is_dir():
        try:
            return _open_folder(uri, path, split)
        except OSError as error:
            raise DataError(f"{error.filename}: expected a readable folder ({error.strerror})") from None
    if path.is_file():
        if path.suffix != ".tar":
            raise DataError(f"{uri}: expected a folder of images or .tar shards, found a file named *{path.suffix}")
        return TarShards(uri, [path])
    if _BRACES.search(uri):
        return TarShards(uri, _brace_range(uri, str(path)))
    found = sorted(Path(match) for match in glob(str(path)) if match.endswith(".tar"))
    if not found:
        raise DataError(f"{uri}: expected a local folder of images or .tar shards, found nothing there")
    _refuse_gaps(found)
    return TarShards(uri, found)


def find_validation(uri: str) -> str | None:
    """The validation split beside the training split that `uri` names or holds: val/ or val-*.tar, else None."""
    path = Path(uri).expanduser()
    if path.name == "train" or path.name.startswith("train-"):
        path = path.parent
    elif (path / "train").is_dir() != (path / "val").is_dir():
        return None
    if (path / "val").is_dir():
        return str(path / "val")
    return str(path / "val-*.tar") if next(path.glob("val-*.tar"), None) else None


def check_classes(source: Source, num_classes: int) -> None:
    """Raise DataError where the model's number of classes is not the data's."""
    if len(source.classes) != num_classes:
        found = len(source.classes)
        raise DataError(
            f"model.num_classes={num_classes}: {source.uri} has {found} classes; set model.num_classes={found}"
        )


def check_same_classes(source: Source, classes: list[str], expected: str) -> None:
    """Raise DataError where the source has other names for as many classes; `expected` says whose, in words."""
    if source.classes != classes:
        theirs, found = next(pair for pair in zip(classes, source.classes, strict=True) if pair[0] != pair[1])
        raise DataError(f"{source.uri}: expected {expected}, found {found!r} in the place of {theirs!r}")


def _open_folder(uri: str, folder: Path, split: Split | None) -> Source:
    folders = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    if folders == {"train"} and split == "train":
        return _open_folder(uri, folder / split, None)
    if {"train", "val"} <= folders:
        if split is None:
            raise DataError(
                f"{uri}: expected one split, found train/ and val/; name {folder / 'train'} or {folder / 'val'}"
            )
        return _open_folder(uri, folder / split, None)
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        return ImageFolder(uri, folder)
    if split is not None:
        chosen = [shard for shard in shards if shard.name.startswith(f"{split}-")]
        if not chosen:
            raise DataError(f"{uri}: expected {split}-*.tar, found {len(shards)} other shards, {shards[0].name} first")
        shards = chosen
    elif len({shard.name.partition("-")[0] for shard in shards} & {"train", "val"}) == 2:
        raise DataError(f"{uri}: expected one split, found train-*.tar and val-*.tar; name {folder / 'train-*.tar'}")
    _refuse_gaps(shards)
    return TarShards(uri, shards)


def _list_images(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise error

    # os.walk, unlike Path.stat, learns what an entry is from its directory: no call per file.
    walked = sorted((root, files) for root, _, files in os.walk(folder, onerror=refuse, followlinks=True))
    return [
        os.path.join(root, name)
        for root, files in walked
        for name in sorted(files)
        if name.lower().endswith(IMAGE_SUFFIXES)
    ]


def _read_bytes(path: str, offset: int = 0, size: int | None = None) -> NDArray[np.uint8]:
    """`size` bytes from `offset`, or the whole file. Read, not mapped, so that waiting for a disk holds no lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(descriptor, os.fstat(descriptor).st_size if size is None else size, offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(f"{path}: expected a readable file ({error.strerror})") from None
    return np.frombuffer(data, np.uint8)


def _brace_range(uri: str, pattern: str) -> list[Path]:
    names = [pattern]
    while match := _BRACES.search(names[0]):
        first, last = match.groups()
        if int(first) > int(last):
            raise DataError(f"{uri}: expected a range that counts up, got {match[0]}")
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        names = [_BRACES.sub(number, name, count=1) for name in names for number in numbers]
    missing = [name for name in names if not os.path.exists(name)]
    if missing:
        raise DataError(f"{uri}: expected {len(names)} shards, {len(missing)} missing, {missing[0]} first")
    return [Path(name) for name in names]


def _refuse_gaps(shards: Sequence[Path]) -> None:
    """A shard lost in copying would otherwise only show as a smaller data set."""
    numbered: dict[tuple[str, str], dict[int, Path]] = {}
    for shard in shards:
        if match := _SHARD_NUMBER.fullmatch(shard.name):
            numbered.setdefault((match[1], match[3]), {})[int(match[2])] = shard
    for present in numbered.values():
        missing = sorted(set(range(min(present), max(present))) - set(present))
        if missing:
            raise DataError(
                f"{shards[0].parent}: expected every shard from {present[min(present)].name} to "
                f"{present[max(present)].name}, number {missing[0]} is missing"
            )


def _class_names(path: Path, largest_label: int) -> list[str]:
    if not path.is_file():
        return [str(label) for label in range(largest_label + 1)]
    names = path.read_text(encoding="utf-8", errors="replace").split("\n")
    names = [name.strip() for name in names if name.strip()]
    if len(names) <= largest_label:
        raise DataError(f"{path}: expected a name for each of at least {largest_label + 1} classes, found {len(names)}")
    return names
