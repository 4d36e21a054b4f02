"""The only reader of tar files: lists the files in a shard and their offsets from the headers alone.

It reads the output of GNU tar, of Python's tarfile and of WebDataset's writers: the formats ustar, GNU (names of any
length, sizes of any number) and pax. Sources: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar
Format".
"""

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
_ADLER = 65521  # zlib's checksum sums bytes modulo this; a header's sum is at most twice as large
_BLANKS = 8 * ord(" ")  # a header's checksum is computed with blanks in its own field
_REGULAR = b"0\x007"
_OF_THE_NEXT = b"LKxXg"  # types of headers whose content is a name or other values for the next member, or for all (g)
_WITHOUT_CONTENT = b"123456"  # links, devices, folders: their size field has no meaning
_SHORT, _LONG, _NEAR = 4096, 2**18, 2**14  # bytes


class Member(NamedTuple):
    """A file in a tar file: its name, and offset and size of its content in bytes."""

    name: str
    offset: int
    size: int


class DamagedError(ValueError):
    """A tar file that is not whole; the text says from where on."""


class TarReader:
    """The files of one tar file, in order. `read` returns bytes of it, which are mostly read from front to back."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        """read: returns the bytes from an offset on, as many as asked for, fewer at the end.

        size: of the tar file, bytes.

        Few bytes are read at a time where the files are large, many where they are small. If only `members` and the
        contents of small files are used, the offsets never decrease.
        """
        self.size = size
        self._read = read
        self._ahead = _SHORT
        self._start, self._buffer = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from byte `offset` on, fewer where the tar file ends. Raises what reading raises."""
        place = offset - self._start
        if place >= 0:
            data = self._buffer[place : place + size]
            if len(data) == size:
                return data
        if offset >= self.size:
            return b""
        gap = place - len(self._buffer)
        self._ahead = min(2 * self._ahead, _LONG) if -BLOCK <= gap < _NEAR else _SHORT
        wanted = min(max(size, self._ahead), self.size - offset)
        self._start, self._buffer = offset, self._read(offset, wanted)
        return self._buffer[:size]

    def members(self, offset: int = 0) -> Iterator[Member]:
        """The regular files from the header at byte `offset` on, up to the block of zeros that ends a tar file.

        Raises DamagedError where the tar file ends earlier or is damaged, after it gave the files before that place.
        """
        name, size = "", -1  # values that a header gives for the member after it
        while True:
            header = self.read(offset, BLOCK)
            kind = header[156:157]
            if len(header) == BLOCK and kind in _REGULAR and not name and header[345] == 0 and _sum_fits(header):
                length = _number(header[124:136])
                stem = header[: header.find(b"\0", 0, 100) if header[99] == 0 else 100]
                found = stem.decode("utf-8", "surrogateescape")
            else:
                if header == bytes(BLOCK):
                    return
                self._refuse_damaged(header, offset)
                length = _number(header[124:136])
                if (kind in b"LxX" and kind) or kind in b"Kg":
                    self._refuse_longer(offset + BLOCK + length, offset)
                    content = self.read(offset + BLOCK, length)
                    if kind == b"L":
                        name = content.split(b"\0")[0].decode("utf-8", "surrogateescape")
                    elif kind in b"xX":
                        name, size = _pax_values(content, name, size)
                    offset += BLOCK + whole_blocks(length)
                    continue
                found = name or _long_name(header)
            length = length if size < 0 else size
            start = offset + BLOCK
            if kind in _WITHOUT_CONTENT and size < 0:
                length = 0
            self._refuse_longer(start + length, offset)
            if kind in _REGULAR and found[-1:] != "/":
                yield Member(found, start, length)
            name, size, offset = "", -1, start + whole_blocks(length)

    def _refuse_damaged(self, header: bytes, offset: int) -> None:
        if len(header) < BLOCK:
            raise DamagedError(f"cut off at byte {self.size}")
        if not _sum_fits(header) or _number(header[124:136]) < 0:
            raise DamagedError(f"cut off or damaged at byte {offset} of {self.size}")

    def _refuse_longer(self, end: int, offset: int) -> None:
        if end > self.size:
            raise DamagedError(f"cut off or damaged at byte {offset} of {self.size}")


def is_header(block: bytes, size: int) -> bool:
    """Whether a block is the header of a file of `size` bytes."""
    return len(block) == BLOCK and _sum_fits(block) and block[156:157] in _REGULAR and _number(block[124:136]) == size


def whole_blocks(size: int) -> int:
    """Bytes that a content of `size` bytes takes up, in whole blocks."""
    return -(-size // BLOCK) * BLOCK


def _sum_fits(header: bytes) -> bool:
    """Whether a header's checksum is right: the sum of its bytes, with blanks in the place of the checksum itself."""
    field = header[148:156]
    found = (zlib.adler32(header) & 0xFFFF) - (zlib.adler32(field) & 0xFFFF) + _BLANKS
    stated = _number(field)
    if (found - stated) % _ADLER == 0 and stated >= 0:
        return True
    signed = sum(header) - sum(field) + _BLANKS - 256 * sum(each > 127 for each in header[:148] + header[156:])
    return signed == stated  # some old writers summed signed bytes


def _number(field: bytes) -> int:
    """A number in a header, in octal digits or in GNU tar's binary form; -1 where there is none."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return -1


def _long_name(header: bytes) -> str:
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and prefix:  # GNU tar keeps times in that field
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _pax_values(content: bytes, name: str, size: int) -> tuple[str, int]:
    """The name and the size that a pax header sets for the next member, else those given."""
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(content):
            return name, size
        record, content = content[len(length) + 1 : int(length)], content[int(length) :]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif key == b"size" and value.isdigit():
            size = int(value)
    return name, size
