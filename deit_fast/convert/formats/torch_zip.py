"""torch's zip archives (.pth, .pt, .bin), which torch.save has written since 1.6.

Tensors are views of the mapped file: weights are read when they are used, and optimizer states not at all. unpickler.py
explains why torch.load(weights_only=True, mmap=True) is not used for them.
"""

import io
import mmap
import re
from pathlib import Path
from typing import Any

import torch

from deit_fast.convert.formats import Container
from deit_fast.convert.formats.constructors import SAVE_STATE_DICT, as_text
from deit_fast.convert.formats.lazy_tensor import BadFileError, Storage
from deit_fast.convert.formats.stored_zip import ZIP_START, StoredZip
from deit_fast.convert.formats.unpickler import read_pickle

_NAMES = 10_000  # bytes at the start of a program's pickle that contain the name of its module


def _read(path: Path, mapped: mmap.mmap) -> Any:
    """The object that was saved. Raises BadFileError where the archive is not as torch writes it."""
    archive = StoredZip(mapped, check=False)
    pickles = [name for name in archive.names if name.endswith("/data.pkl")]
    if any(name.endswith("/constants.pkl") for name in archive.names):
        start = archive.span(pickles[0])[0] if pickles else 0
        module = re.search(rb"c(__torch__[\w.]*)\n(\w+)\n", mapped[start : start + _NAMES])
        of = f" of {module[1].decode()}.{module[2].decode()}" if module else ""
        raise BadFileError(f"is a TorchScript program{of}: {SAVE_STATE_DICT}")
    if any("/models/" in name or name.endswith("archive_format") for name in archive.names):
        raise BadFileError(f"is a program of torch.export: {SAVE_STATE_DICT}")
    archive.check_stored()
    if len(pickles) != 1:
        raise BadFileError("is a zip archive, but not one of torch.save")
    prefix = pickles[0].removesuffix("data.pkl")
    if prefix + "byteorder" in archive.names and mapped[slice(*archive.span(prefix + "byteorder"))] != b"little":
        raise BadFileError("was written on a big-endian machine")

    def storage(reference: Any) -> Storage:
        kind, dtype, key, _, count = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise BadFileError("refers to something other than a storage")
        start, end = archive.span(f"{prefix}data/{as_text(key)}")
        if type(count) is not int or count < 0 or count * dtype.itemsize > end - start:
            raise BadFileError(f"has a storage of {count} elements in {end - start} bytes")
        return Storage(dtype, count, mapped, start)

    return read_pickle(io.BytesIO(mapped[slice(*archive.span(pickles[0]))]), storage)


CONTAINER = Container("torch", recognises=lambda mapped: mapped[:4] == ZIP_START, read=_read)
