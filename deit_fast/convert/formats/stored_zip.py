"""Zip archives with uncompressed entries, as torch.save and numpy.savez write them."""

import mmap
import struct
import zipfile
from typing import Any

from deit_fast.convert.formats.lazy_tensor import BadFileError

ZIP_START = b"PK\x03\x04"
"""The first bytes of an archive and of each of its entries."""
_DIRECTORY_LIMIT = 4_000_000  # bytes of an archive's directory: 40,000 tensors
_LOCAL_HEADER = 30  # bytes of an entry before its name; the last two numbers are the lengths of name and extra field


class _Directory:
    """A mapped file for zipfile, with a limit on the directory, which zipfile would read with any size it claims."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped = mapped
        self.seek, self.tell = mapped.seek, mapped.tell

    def read(self, size: int = -1) -> bytes:
        size = len(self._mapped) - self._mapped.tell() if size < 0 else size
        if size > _DIRECTORY_LIMIT:
            raise BadFileError(f"has a zip directory of {size} bytes: expected at most {_DIRECTORY_LIMIT}")
        return self._mapped.read(size)


class StoredZip:
    """The places of the entries in a mapped archive. Raises BadFileError where an entry is compressed.

    check: False skips this check, for a caller that looks at the names first and then calls `check_stored`.
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
        """The first byte of an entry's content in the file, and the byte after its last.

        Raises KeyError for a name that is not in the archive, BadFileError for an entry that exceeds the file.
        """
        entry = self._entries[name]
        header = entry.header_offset
        if self._mapped[header : header + 4] != ZIP_START:
            raise BadFileError("has a damaged zip directory")
        start = header + _LOCAL_HEADER + sum(struct.unpack_from("<HH", self._mapped, header + _LOCAL_HEADER - 4))
        if start + entry.file_size > len(self._mapped):
            raise BadFileError(f"ends before its entry {name[:50]!a} does; it may be truncated")
        return start, start + entry.file_size
