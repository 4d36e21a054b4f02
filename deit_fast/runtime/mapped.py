"""Files of arrays with plain data beside them, which all processes of a machine map. A damaged file is detected.

The layout: 8 bytes that identify the format, CRC-32 and size of the head, the head as JSON, then each array at a
multiple of 8 bytes.
"""

import json
import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deit_fast.runtime.files import atomic_path
from deit_fast.runtime.mounts import find_mount

_NAME = b"DFARRAY1"
_START = struct.Struct("<8sII")
_ALIGNED = 8

Arrays = Mapping[str, NDArray[Any]]


def write_arrays(path: Path, content: Mapping[str, Any], arrays: Arrays) -> None:
    """Writes plain data and named arrays, each of any shape and integer type. Raises OSError."""
    places, size, total = {}, 0, 0
    for name, array in arrays.items():
        places[name] = [array.dtype.str, array.shape, size]
        size += _whole(array.nbytes)
        total += _sum(array)
    head = json.dumps({"content": content, "arrays": places, "bytes": size, "sum": total % 2**64}).encode()
    head = head.ljust(_whole(_START.size + len(head)) - _START.size)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(_START.pack(_NAME, zlib.crc32(head), len(head)) + head)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)
            file.write(bytes(_whole(array.nbytes) - array.nbytes))


def read_arrays(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The data and arrays that `write_arrays` wrote. Arrays are read-only and mapped, so that processes share them.

    On a network file system the file is read instead of mapped: if another machine replaces it, mapped pages can
    disappear, and access to such a page ends the process. Raises OSError, and ValueError for a damaged file, which
    checksums over every byte detect.
    """
    content, places, data, start = _open(path, whole=True)
    body = np.frombuffer(data, np.uint64, offset=start)
    if body.nbytes != content["bytes"] or int(body.sum(dtype=np.uint64)) != content["sum"]:
        raise ValueError(f"{path}: expected the arrays that its head describes")
    return content["content"], {
        name: np.frombuffer(data, kind, count=int(np.prod(shape)), offset=start + at).reshape(shape)
        for name, (kind, shape, at) in places.items()
    }


def read_content(path: Path) -> dict[str, Any]:
    """The plain data of such a file, without its arrays. Raises OSError and ValueError."""
    return _open(path, whole=False)[0]["content"]


def _open(path: Path, whole: bool) -> tuple[dict[str, Any], dict[str, Any], mmap.mmap | bytes, int]:
    """The head, the arrays' places, the file's content if `whole` is set, and the end of the head."""
    with open(path, "rb") as file:
        start = file.read(_START.size)
        name, crc, size = _START.unpack(start) if len(start) == _START.size else (b"", 0, 0)
        text = file.read(size) if name == _NAME else b""
        if name != _NAME or len(text) != size or zlib.crc32(text) != crc:
            raise ValueError(f"{path}: expected a file of arrays")
        head = json.loads(text)
        end = _START.size + size
        data: mmap.mmap | bytes = b""
        if whole and os.fstat(file.fileno()).st_size == end + head["bytes"]:
            if find_mount(path).is_shared:
                file.seek(0)
                data = file.read()
            else:
                data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        elif whole:
            raise ValueError(f"{path}: expected {end + head['bytes']} bytes")
    return head, head["arrays"], data, end


def _whole(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _sum(array: NDArray[Any]) -> int:
    """The sum of an array's bytes as little-endian 64-bit words, the last word padded with zeros."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    full = len(data) // _ALIGNED * _ALIGNED
    return int(data[:full].view("<u8").sum(dtype=np.uint64)) + int.from_bytes(data[full:].tobytes(), "little")
