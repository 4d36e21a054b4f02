"""Zip archives whose entries are stored, not compressed, as torch.save and numpy.savez write them."""

import mmap
import struct
import zipfile
from typing import Any

from deit_fast.convert.formats.lazy_tensor import BadFileError

ZIP_START = b"PK\x03\x04"
"""The first bytes of an archive, and of each of its entries."""
_DIRECTORY_LIMIT = 4_000_000  # bytes of a zip archive's directory: 40,000 tensors
_LOCAL_HEADER = 30  # bytes of a zip entry before its name; the lengths of name and extra field are its last two


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


class StoredZip:
    """Where the entries of a mapped archive lie. Raises BadFileError where one of them is compressed.

    check: False leaves that to `check_stored`, for who has something to say of an archive's names before.
    """

    def __init__(self, mapped: mmap.mmap, check: bool = True) -> None:
        self._mapped = mapped
        directory: Any = _Directory(mapped)
        with zipfile.ZipFile(directory) as archive:
            self._entries = {entry.filename: entry for entry in archive.infolist()}
        if check:
            self.check_stored()

    def check_stored(self) -> None:
        """Raises BadFileError where an entry is compressed."""
        for entry in self._entries.values():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise BadFileError(
                    f"has a compressed entry ({entry.compress_size} bytes become {entry.file_size}): "
                    "expected stored ones"
                )

    @property
    def names(self) -> list[str]:
        """Names of the entries, in the order of the archive's directory."""
        return list(self._entries)

    def span(self, name: str) -> tuple[int, int]:
        """First byte of an entry in the file, and the one after its last.

        Raises KeyError for a name that the archive does not have, BadFileError for an entry beyond the file.
        """
        entry = self._entries[name]
        header = entry.header_offset
        if self._mapped[header : header + 4] != ZIP_START:
            raise BadFileError("has a damaged zip directory")
        start = header + _LOCAL_HEADER + sum(struct.unpack_from("<HH", self._mapped, header + _LOCAL_HEADER - 4))
        if start + entry.file_size > len(self._mapped):
            raise BadFileError(f"ends before its entry {name[:50]!a} does; it may be truncated")
        return start, start + entry.file_size
