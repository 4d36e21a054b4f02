"""Consecutive pickles: torch's files before 1.6, and the single pickle of numpy arrays that paddle.save writes."""

import mmap
import struct
from pathlib import Path
from typing import Any

import torch

from deit_fast.convert.formats import Container
from deit_fast.convert.formats.constructors import as_text
from deit_fast.convert.formats.lazy_tensor import BadFileError, LazyTensor, Storage
from deit_fast.convert.formats.unpickler import read_pickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOLS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_NAME_TABLE = "StructuredToParameterName@@"  # paddle.save's table of variable names, which is no weight


def _read(path: Path, mapped: mmap.mmap) -> Any:
    mapped.seek(0)
    first = read_pickle(mapped)
    return _read_legacy(mapped) if first == _LEGACY_MAGIC else _without_variables(first)


def _without_variables(tree: Any) -> Any:
    """paddle's arrays by name. Since 2.1, each is stored in a pair with the name of its variable."""
    if not isinstance(tree, dict):
        return tree
    return {
        name: value[1] if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], LazyTensor) else value
        for name, value in tree.items()
        if name != _NAME_TABLE
    }


def _read_legacy(mapped: mmap.mmap) -> Any:
    """The object in a legacy torch file, after its first pickle; storages follow the pickles, in their own order."""
    storages: dict[str, Storage] = {}

    def storage(reference: Any) -> Storage:
        kind, dtype, key, _, count, view = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype) or view is not None:
            raise BadFileError("refers to something other than a whole storage")
        return storages.setdefault(as_text(key), Storage(dtype, count))

    read_pickle(mapped)  # the version of the protocol
    system = read_pickle(mapped)
    if not system.get("little_endian", True):
        raise BadFileError("was written on a big-endian machine")
    content = read_pickle(mapped, storage)
    order = read_pickle(mapped)
    position = mapped.tell()
    for key in order:
        held = storages[as_text(key)]
        if position + 8 > len(mapped):
            raise BadFileError("ends before its tensors do; it may be truncated")
        (count,) = struct.unpack_from("<q", mapped, position)
        if count != held.count:
            raise BadFileError(f"has a storage of {held.count} elements, written as {count}")
        held.data, held.start = mapped, position + 8
        position = held.start + count * held.dtype.itemsize
        if position > len(mapped):
            raise BadFileError("ends before its tensors do; it may be truncated")
    return content


CONTAINER = Container(
    "pickles (torch before 1.6, paddle)", recognises=lambda mapped: mapped[:2] in _PROTOCOLS, read=_read
)
