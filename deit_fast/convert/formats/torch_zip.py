"""torch's zip archives, .pth, .pt and .bin, as torch.save writes them since 1.6.

Tensors are views of the mapped file, so weights are read only where they are used, and optimizer states not at all.
unpickler.py says why torch.load(weights_only=True, mmap=True) does not read them.
"""

import io
import mmap
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from deit_fast.convert.formats import Container
from deit_fast.convert.formats.constructors import text
from deit_fast.convert.formats.lazy_tensor import BadFileError, Storage
from deit_fast.convert.formats.unpickler import read_pickle

_DIRECTORY_LIMIT = 4_000_000  # bytes of a zip archive's directory: 40,000 tensors
_LOCAL_HEADER = 30  # bytes of a zip entry before its name; the lengths of name and extra field are its last two
_MAGIC = b"PK\x03\x04"


class _Directory:
    """A mapped file as zipfile reads it, which takes an archive's directory in one piece, at the archive's word."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped = mapped
        self.seek, self.tell = mapped.seek, mapped.tell

    def read(self, size: int = -1) -> bytes:
        size = len(self._mapped) - self._mapped.tell() if size < 0 else size
        if size > _DIRECTORY_LIMIT:
            raise BadFileError(f"has a zip directory of {size} bytes: expected at most {_DIRECTORY_LIMIT}")
        return self._mapped.read(size)


def _read(path: Path, mapped: mmap.mmap) -> Any:
    """The object that was saved. Raises BadFileError where the archive is not as torch writes it."""
    directory: Any = _Directory(mapped)
    with zipfile.ZipFile(directory) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise BadFileError("is a zip archive, but not one of torch.save")
        for entry in entries.values():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise BadFileError(
                    f"has a compressed entry ({entry.compress_size} bytes become {entry.file_size}), "
                    "which torch does not write"
                )
    prefix = pickles[0].removesuffix("data.pkl")

    def span(name: str) -> tuple[int, int]:
        entry = entries[prefix + name]
        header = entry.header_offset
        if mapped[header : header + 4] != _MAGIC:
            raise BadFileError("has a damaged zip directory")
        start = header + _LOCAL_HEADER + sum(struct.unpack_from("<HH", mapped, header + _LOCAL_HEADER - 4))
        if start + entry.file_size > len(mapped):
            raise BadFileError(f"ends before its entry {name[:50]!a} does; it may be truncated")
        return start, start + entry.file_size

    if prefix + "byteorder" in entries and mapped[slice(*span("byteorder"))] != b"little":
        raise BadFileError("was written on a big-endian machine")

    def storage(reference: Any) -> Storage:
        kind, dtype, key, _, count = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise BadFileError("refers to something other than a storage")
        start, end = span(f"data/{text(key)}")
        if type(count) is not int or count < 0 or count * dtype.itemsize > end - start:
            raise BadFileError(f"has a storage of {count} elements in {end - start} bytes")
        return Storage(dtype, count, mapped, start)

    start, end = span("data.pkl")
    return read_pickle(io.BytesIO(mapped[start:end]), storage)


CONTAINER = Container("torch", recognises=lambda mapped: mapped[:4] == _MAGIC, read=_read)
