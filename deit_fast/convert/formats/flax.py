"""flax's msgpack files: a tree of dictionaries with arrays as extension type 1, (shape, dtype name, bytes).

An array's name here is its path in the tree, joined by dots.

Source of the layout: flax.serialization.msgpack_serialize. Arrays above 1 GiB, which flax writes in chunks, are
refused.
"""

import mmap
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from torch import Tensor

from deit_fast.convert.formats import Container
from deit_fast.convert.formats.lazy_tensor import DTYPES, BadFileError, LazyTensor, lazy_array

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_MAX_NAMES = 10_000  # of one dictionary; lists are written as dictionaries too
_MAX_RANK = 8
_MAX_PATH = 300  # characters of an array's path, whose beginning is repeated for each array in a dictionary


def _recognises(mapped: mmap.mmap) -> bool:
    return 0x81 <= mapped[0] <= 0x8F or mapped[0] in (0xDE, 0xDF)  # msgpack's codes of dictionaries


def _read(path: Path, mapped: mmap.mmap) -> dict[str, LazyTensor]:
    size = len(mapped)
    try:
        tree = msgpack.unpackb(
            mapped,
            ext_hook=_unpack,
            raw=False,
            strict_map_key=True,
            max_bin_len=size,
            max_ext_len=size,
            max_str_len=size,
            max_array_len=_MAX_RANK,
            max_map_len=_MAX_NAMES,
        )
    except (msgpack.UnpackException, ValueError) as error:
        if isinstance(error, BadFileError):
            raise
        raise BadFileError(f"is no readable msgpack file ({error or type(error).__name__})") from None
    return dict(_leaves(tree))


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, LazyTensor]]:
    found = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if len(path) > _MAX_PATH:
            raise BadFileError(f"has a name of more than {_MAX_PATH} characters ({path[:20]!a}...)")
        if isinstance(value, dict):
            found += _leaves(value, f"{path}.")
        elif isinstance(value, LazyTensor):
            found.append((path, value))
        else:
            raise BadFileError(f"has {path}={str(value)[:20]!a}: expected an array")
    return found


def _unpack(code: int, data: bytes) -> Any:
    if code == _COMPLEX:
        raise BadFileError("has complex numbers: expected weights")
    if code not in (_ARRAY, _SCALAR):
        raise BadFileError(f"has the msgpack extension {code}: expected flax's arrays, {_ARRAY}")
    shape, name, raw = msgpack.unpackb(data, raw=True, max_array_len=_MAX_RANK, max_map_len=0)
    dtype = DTYPES.get(name.decode("ascii"))
    if dtype is None:
        raise BadFileError(f"has an array of {name[:20]!a}: expected numbers")
    return lazy_array(raw, dtype, tuple(shape))


def write_flax(tensors: dict[str, Tensor]) -> bytes:
    """Arrays of any shape [...] by name as msgpack bytes of a tree, in which each dot in a name begins a branch.

    `flax.serialization.msgpack_restore` reads the bytes.
    """
    tree: dict[str, Any] = {}
    for name, value in tensors.items():
        *folders, leaf = name.split(".")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[leaf] = value
    return msgpack.packb(tree, default=_pack, strict_types=True)


def _pack(leaf: Tensor) -> msgpack.ExtType:
    array = np.ascontiguousarray(leaf.detach().cpu().numpy())
    content = msgpack.packb((leaf.shape, array.dtype.name, array.tobytes()), use_bin_type=True)
    return msgpack.ExtType(_ARRAY, content)


CONTAINER = Container("flax (msgpack)", recognises=_recognises, read=_read)
