"""torch's files, .pth, .pt and .bin: the zip archive of today and the pickles in a row of before 1.6.

Tensors are views of the mapped file, so weights are read only where they are used, and optimizer states not at all.
"""

import io
import mmap
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from deit_fast.convert.formats.constructors import text
from deit_fast.convert.formats.lazy_tensor import BadFileError, Storage
from deit_fast.convert.formats.pickles import read_pickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DIRECTORY_LIMIT = 4_000_000  # bytes of a zip archive's directory: 40,000 tensors
_LOCAL_HEADER = 30  # bytes of a zip entry before its name; the lengths of name and extra field are its last two


def map_file(path: Path) -> mmap.mmap:
    """The file as memory of which writes stay private. Raises BadFileError for an empty one, OSError otherwise."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for somebody to write
        raise BadFileError("is no regular file")
    if not status.st_size:
        raise BadFileError("is empty")
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


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


def read_zip(mapped: mmap.mmap) -> Any:
    """The object of a zip archive of torch.save. Raises BadFileError where the archive is not as torch writes it."""
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
        if mapped[header : header + 4] != b"PK\x03\x04":
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


def read_pickles(mapped: mmap.mmap) -> Any:
    """The object of a legacy torch file, or of a plain pickle of numpy arrays, as paddle writes it."""
    mapped.seek(0)
    storages: dict[str, Storage] = {}

    def storage(reference: Any) -> Storage:
        kind, dtype, key, _, count, view = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype) or view is not None:
            raise BadFileError("refers to something other than a whole storage")
        return storages.setdefault(text(key), Storage(dtype, count))

    first = read_pickle(mapped)
    if first != LEGACY_MAGIC:
        return first
    read_pickle(mapped)  # the protocol's version
    system = read_pickle(mapped)
    if not system.get("little_endian", True):
        raise BadFileError("was written on a big-endian machine")
    content = read_pickle(mapped, storage)
    order = read_pickle(mapped)
    position = mapped.tell()
    for key in order:
        held = storages[text(key)]
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
