"""Tensors that are not yet read from their file: no memory is allocated before a size is known to be true."""

import mmap
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class BadFileError(ValueError):
    """A checkpoint that is damaged or of the wrong kind; the message is one line without the file's name."""


DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
"""Element types by their names in numpy, flax and torch."""


_SHARED = 2  # how often the bytes of a file may be used, because of tied weights


def map_file(path: Path) -> mmap.mmap:
    """The file as memory with private writes.

    Raises BadFileError for an empty or special file, OSError for other errors.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
        raise BadFileError("is no regular file")
    if not status.st_size:
        raise BadFileError("is empty")
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


@dataclass
class Storage:
    """`count` elements of one type, from byte `start` of `data` on.

    In legacy torch files the elements follow the pickle that refers to them; `data` is None until the pickle is read.
    """

    dtype: torch.dtype
    count: int
    data: mmap.mmap | bytes | None = None
    start: int = 0

    def elements(self) -> Tensor:
        """The storage as a flat tensor [count]: a view of the mapped file, which is read on use, or else a copy.

        Raises BadFileError where the file ends too early.
        """
        size = self.count * self.dtype.itemsize
        if self.data is None or self.start + size > len(self.data):
            raise BadFileError(f"holds less than the {size} bytes of one of its tensors; it may be truncated")
        data: mmap.mmap | bytes | bytearray = self.data
        start = self.start
        if isinstance(data, bytes) or start % self.dtype.itemsize:  # read-only or not aligned
            data, start = bytearray(memoryview(data)[start : start + size]), 0
        return torch.frombuffer(data, dtype=self.dtype, count=self.count, offset=start)


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file: a strided view of a storage. Offset and strides count elements, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """The tensor itself, [*shape]. Raises BadFileError where the view exceeds its storage."""
        numbers = (self.offset, *self.shape, *self.stride)
        if any(type(number) is not int or number < 0 for number in numbers) or len(self.shape) != len(self.stride):
            raise BadFileError("has a tensor of impossible shape")
        elements, last = 1, self.offset
        for length, step in zip(self.shape, self.stride, strict=True):
            elements *= length
            last += (length - 1) * step
        if not elements:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        # No writer makes a view with more elements than its storage. Repeating elements would inflate memory without
        # limit.
        if last >= self.storage.count or elements > self.storage.count:
            raise BadFileError(
                f"has a tensor of shape {list(self.shape)} in a storage of {self.storage.count} elements"
            )
        return self.storage.elements().as_strided(self.shape, self.stride, self.offset)


def lazy_array(raw: bytes, dtype: torch.dtype, shape: tuple[int, ...], fortran: bool = False) -> LazyTensor:
    """An array [*shape] from contiguous bytes in C or Fortran order.

    Raises BadFileError for a wrong number of bytes.
    """
    elements = 1
    steps = []
    for length in shape if fortran else reversed(shape):
        if type(length) is not int or length < 0:
            raise BadFileError("has an array of impossible shape")
        steps.append(elements)
        elements *= length
    if elements * dtype.itemsize != len(raw):
        raise BadFileError(f"has an array of shape {list(shape)} and {dtype} in {len(raw)} bytes")
    return LazyTensor(Storage(dtype, elements, raw), 0, tuple(shape), tuple(steps if fortran else reversed(steps)))


def read_tensors(state: Mapping[Any, Any], size: int) -> dict[str, Tensor]:
    """The tensors (LazyTensor or Tensor) of a file of `size` bytes, by name, of any shape [...].

    Raises BadFileError for anything else among them, for no tensors, for more bytes than twice the file's, and for
    numbers that are not finite.
    """
    tensors, taken = {}, 0
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, LazyTensor | Tensor):
            raise BadFileError(f"has {str(name)[:50]!a} of type {type(value).__name__}: expected tensors by name")
        tensor = tensors[name] = value if isinstance(value, Tensor) else value.tensor()
        taken += tensor.nbytes
        if taken > _SHARED * size:
            raise BadFileError(f"has more than {taken} bytes of tensors in a file of {size}")
    if not tensors:
        raise BadFileError("has no weights")
    check_finite(tensors)
    return tensors


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises BadFileError where a tensor [...] has NaN or infinities, because scores of such weights mean nothing."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
            wrong, count = tensor.numel() - int(finite.sum()), tensor.numel()
            raise BadFileError(f"has NaN or infinity in {name[:100]}, {wrong} of {count} numbers: expected finite ones")
