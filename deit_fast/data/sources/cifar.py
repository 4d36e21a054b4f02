"""CIFAR-10 and CIFAR-100 as downloaded, in the binary or in the Python version.

The Python version consists of pickles, which can run code when they are read. Refusing them would send users back to
download the binary archive. They are therefore read with an unpickler that maps each of numpy's names to one stand-in
class, which only keeps its state, and refuses any other name. The arrays are made from the bytes that the stand-ins
keep.
"""

import io
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source, read_bytes
from deit_fast.data.sources.classes import check_labels, read_class_names
from deit_fast.data.sources.headers import Header
from deit_fast.data.sources.source_format import Request, SourceFormat
from deit_fast.runtime.errors import DataError, one_line

_SIDE = 32
_VALUES = 3 * _SIDE * _SIDE
_PPM_HEADER = np.frombuffer(f"P6\n{_SIDE} {_SIDE}\n255\n".encode(), np.uint8)

_Records = tuple[NDArray[np.uint8], NDArray[np.int64]]  # pixels [N, 3072] in channel, row, column order; labels [N]


class Layout(NamedTuple):
    """The files of one version of a data set."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    names: str
    """The file with the names of the classes."""
    read: Callable[[Path], _Records]
    read_names: Callable[[Path], list[str]]


class Cifar(Source):
    """The images of one split, encoded as PPM, which loses nothing; CIFAR-100 has its 100 fine classes."""

    def __init__(self, uri: str, folder: Path, layout: Layout, split: str) -> None:
        files = layout.train if split == "train" else layout.val
        parts = [layout.read(folder / file) for file in files]
        classes = layout.read_names(folder / layout.names)
        labels = np.concatenate([part[1] for part in parts])
        check_labels(folder / layout.names, classes, int(labels.max()))
        super().__init__(uri, classes, labels)
        self._pixels = np.concatenate([part[0] for part in parts])
        self._names = [f"{folder / file}:{n:05}.ppm" for file, part in zip(files, parts, strict=True)
                       for n in range(len(part[1]))]  # fmt: skip

    def relative_names(self) -> list[str]:
        """Numbers as names: both versions of a data set have the same N images in the same order."""
        return [str(index) for index in range(len(self))]

    def fingerprints(self, images: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """int64 [N, 1], the CRC-32 of each image's pixels; with `images` (int64 [n]), of these alone, [n, 1]."""
        pixels = self._pixels if images is None else self._pixels[images]
        return np.array([zlib.crc32(each) for each in np.ascontiguousarray(pixels)], np.int64)[:, None]

    def header(self, index: int, encoded: NDArray[np.uint8]) -> Header:
        """32 x 32 px for every image, without looking at the file."""
        return Header(_SIDE, _SIDE, True)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as a PPM file of 32 x 32 px, uint8 [bytes]."""
        pixels = self._pixels[index].reshape(3, -1).T
        return np.concatenate((_PPM_HEADER, pixels.reshape(-1)))

    def name(self, index: int) -> str:
        return self._names[index]


def _read_binary(path: Path, label_bytes: int) -> _Records:
    """Reads records of `label_bytes` bytes, the last of which is the label, followed by the pixels."""
    data = read_bytes(str(path))
    if not len(data) or len(data) % (label_bytes + _VALUES):
        raise DataError(f"{path}: expected records of {label_bytes + _VALUES} bytes, found {len(data)} bytes in all")
    records = data.reshape(-1, label_bytes + _VALUES)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)


class _StandIn:
    """Replaces each of numpy's names in a pickle: keeps the state that it is given, and does nothing."""

    __slots__ = ("state",)

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_StandIn]:
        if module.partition(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return _StandIn
        raise pickle.UnpicklingError(f"{module}.{name} is not in CIFAR's files")


def _unpickle(path: Path) -> Any:
    """A pickle of plain data and arrays; each array becomes a stand-in."""
    data = read_bytes(str(path))
    try:
        return _Unpickler(io.BytesIO(data.data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises anything
        raise DataError(f"{path}: expected a file of CIFAR's python version ({one_line(error)[:200]})") from None


def _read_pickle(path: Path, label_key: bytes) -> _Records:
    content = _unpickle(path)
    try:
        _, shape, _, by_column, data = content[b"data"].state
        pixels = np.frombuffer(data, np.uint8).reshape(shape, order="F" if by_column else "C")
        labels = np.array(content[label_key])
        valid = labels.dtype.kind == "i" and labels.min() >= 0 and pixels.shape == (len(labels), _VALUES)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: expected a batch of CIFAR's python version ({one_line(error)[:200]})") from None
    if not valid:
        raise DataError(f"{path}: expected {_VALUES} bytes and a label for each image, found {pixels.shape} bytes")
    return pixels, labels.astype(np.int64)


def _read_pickled_names(path: Path, key: bytes) -> list[str]:
    content = _unpickle(path)
    try:
        return [name.decode() for name in content[key]]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError(f"{path}: expected the names of the classes as {key.decode()}") from None


_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))

LAYOUTS = (
    Layout(
        tuple(f"{name}.bin" for name in _TRAIN), ("test_batch.bin",), "batches.meta.txt",
        lambda path: _read_binary(path, 1), read_class_names,
    ),
    Layout(
        ("train.bin",), ("test.bin",), "fine_label_names.txt",
        lambda path: _read_binary(path, 2), read_class_names,
    ),
    Layout(
        _TRAIN, ("test_batch",), "batches.meta",
        lambda path: _read_pickle(path, b"labels"), lambda path: _read_pickled_names(path, b"label_names"),
    ),
    Layout(
        ("train",), ("test",), "meta",
        lambda path: _read_pickle(path, b"fine_labels"), lambda path: _read_pickled_names(path, b"fine_label_names"),
    ),
)  # fmt: skip
"""CIFAR-10 binary, CIFAR-100 binary, CIFAR-10 python, CIFAR-100 python."""


def _find_layout(request: Request) -> Layout | None:
    """The version that has its files in the folder."""
    return next((each for each in LAYOUTS if {each.train[0], *each.val, each.names} <= request.files), None)


def _open(request: Request) -> Cifar:
    layout = _find_layout(request)
    assert layout is not None
    return Cifar(request.uri, request.path, layout, request.own_split())


SOURCE = SourceFormat(
    recognises=lambda request: _find_layout(request) is not None,
    open=_open,
    find_validation=lambda request: request.uri,
)
