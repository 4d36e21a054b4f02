"""flax's msgpack files: a tree of dictionaries with arrays as extension type 1, (shape, dtype name, bytes).

Facts of the layout: flax.serialization.msgpack_serialize. Arrays above 1 GiB, which flax writes in chunks, are refused.
"""

import mmap
from typing import Any

import msgpack
import numpy as np
from torch import Tensor

from deit_fast.convert.formats.lazy_tensor import DTYPES, BadFileError, stored_array

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_MAX_NAMES = 10_000  # of a dictionary; lists are written as dictionaries too
_MAX_RANK = 8


def read_flax(mapped: mmap.mmap) -> Any:
    """The tree, with `Stored` arrays. msgpack's lengths are held against the file's before memory is taken."""
    size = len(mapped)
    try:
        return msgpack.unpackb(
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


def _unpack(code: int, data: bytes) -> Any:
    if code == _COMPLEX:
        raise BadFileError("has complex numbers: expected weights")
    if code not in (_ARRAY, _SCALAR):
        raise BadFileError(f"has the msgpack extension {code}: expected flax's arrays, {_ARRAY}")
    shape, name, raw = msgpack.unpackb(data, raw=True, max_array_len=_MAX_RANK, max_map_len=0)
    dtype = DTYPES.get(name.decode("ascii"))
    if dtype is None:
        raise BadFileError(f"has an array of {name[:20]!a}: expected numbers")
    return stored_array(raw, dtype, tuple(shape))


def write_flax(tree: dict[str, Any]) -> bytes:
    """The bytes of a tree of dictionaries with tensors as leaves, which `flax.serialization.msgpack_restore` reads."""
    return msgpack.packb(tree, default=_pack, strict_types=True)


def _pack(leaf: Tensor) -> msgpack.ExtType:
    array = np.ascontiguousarray(leaf.detach().cpu().numpy())
    content = msgpack.packb((leaf.shape, array.dtype.name, array.tobytes()), use_bin_type=True)
    return msgpack.ExtType(_ARRAY, content)
