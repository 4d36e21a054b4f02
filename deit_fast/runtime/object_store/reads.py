"""Reads an object's bytes, a range or all as a stream; a broken transfer continues at the byte reached."""

import os
from collections.abc import Iterator
from typing import Protocol

from deit_fast.runtime.errors import RunError
from deit_fast.runtime.object_store.addresses import TOKEN, Address, address_of, forget_target, keep_target, renew
from deit_fast.runtime.object_store.http_get import Opened, get, read_piece
from deit_fast.runtime.object_store.uris import (
    WEB,
    ChangedError,
    DeniedError,
    Object,
    ask,
    missing,
    scheme_of,
    without_query,
)
from deit_fast.runtime.patience import BusyError, Pause

_PIECE = 1 << 20


def read_range(uri: str, start: int, size: int, version: str, pause: Pause | None = None) -> bytes:
    """`size` bytes of the object from byte `start` on, in exactly this version.

    version: as in an Object or an index. pause: as in `patiently`; it returns true to give up at once. Raises
    ChangedError where the object was replaced or removed, StorageError where the store goes on failing, else RunError.
    """
    return b"".join(_pieces(_open(uri, start, start + size, version), pause))


def stream_object(wanted: Object, start: int = 0, pause: Pause | None = None) -> Iterator[bytes]:
    """The object's content from byte `start` on, in pieces of at most 1 MiB.

    Each piece that arrives restarts the time of waiting. pause and errors: as in `read_range`.
    """
    if start < wanted.size:
        return _pieces(_open(wanted.uri, start, wanted.size, wanted.version, wanted.size), pause)
    return iter(())


def read_object(uri: str, most: int | None = None) -> bytes:
    """The object's content, by one request. Raises RunError, also for more than `most` bytes, and MissingError."""
    transfer = _open(uri, 0, None, None)
    data = bytearray()
    for piece in _pieces(transfer, None):
        data += piece
        if most is not None and len(data) > most:
            transfer.close()
            raise RunError(f"{without_query(uri)}: expected at most {most} bytes, found more")
    return bytes(data)


def find_by_reading(uri: str) -> Object:
    """The object at a URI of http(s) or hf, found by reading its first byte. Raises RunError."""
    transfer = _Transfer(uri, 0, 1, None)
    ask(uri, transfer.read)
    assert transfer.size is not None
    transfer.close()
    return Object(uri, transfer.size, transfer.version or "")


class _Pieces(Protocol):
    uri: str

    def read(self) -> bytes:
        """The next piece, empty at the end; may be called again after a BusyError."""

    def close(self) -> None: ...


def _pieces(transfer: _Pieces, pause: Pause | None) -> Iterator[bytes]:
    try:
        while piece := ask(transfer.uri, transfer.read, pause):
            yield piece
    finally:
        transfer.close()


def _open(uri: str, start: int, stop: int | None, version: str | None, size: int | None = None) -> _Pieces:
    return (_File if scheme_of(uri) == "file" else _Transfer)(uri, start, stop, version, size)


class _Transfer:
    """Bytes `start` to `stop` (None: the end) of an object; size and version, if None, are learnt from the response.

    If the object is read to its end, a web server need not report its size.
    """

    def __init__(self, uri: str, start: int, stop: int | None, version: str | None, size: int | None = None) -> None:
        self.uri, self._position, self._stop, self.version, self.size = uri, start, stop, version, size
        self._listed = version is not None
        self._opened: Opened | None = None

    def read(self) -> bytes:
        if self._stop is not None and self._position >= self._stop:
            return b""
        try:
            opened = self._opened or self.open()  # opening finds out where the object ends
            left = _PIECE if self._stop is None else min(_PIECE, self._stop - self._position)
            piece = read_piece(opened, left, without_query(self.uri)) if left else b""
            if not piece and left and self.size is not None:
                raise BusyError(f"the transfer ended at byte {self._position}")
        except BusyError as error:
            self.close()
            if self._position and self.size is None and self.version is None:  # cannot be continued
                raise RunError(f"{without_query(self.uri)}: cannot be read ({error})") from None
            raise
        self._position += len(piece)
        return piece

    def open(self) -> Opened:
        """The response, with its body at `start`."""
        name = without_query(self.uri)
        address = address_of(self.uri, self.version)
        try:
            opened = self._get(address, name)
        except DeniedError:
            renew(self.uri)
            address = address_of(self.uri, self.version)
            try:
                opened = self._get(address, name)
            except DeniedError as error:
                raise RunError(f"{error}{self._hint(address)}") from None
        try:
            self._check(opened, address)
        except Exception:
            opened.body.close()
            raise
        self._opened = opened
        return opened

    def close(self) -> None:
        if self._opened is not None:
            self._opened.body.close()  # a body read to its end has returned its connection already
            self._opened = None

    def _get(self, address: Address, name: str) -> Opened:
        whole = self._position == 0 and self._stop in (None, self.size)
        last = "" if self._stop is None else self._stop - 1
        opened = get(address, name, None if whole else f"bytes={self._position}-{last}")
        went_on = opened.url != address.url and opened.body.status in (200, 206)
        if opened.body.status in (404, 410) and forget_target(self.uri, address):
            opened.body.close()
            return self._get(address_of(self.uri, self.version), name)
        if scheme_of(self.uri) == "hf" and opened.linked and went_on:
            keep_target(self.uri, Address(opened.url, {}, None, opened.linked.strip('"')))
        return opened

    def _check(self, opened: Opened, address: Address) -> None:
        """Raises where the response is of another object; learns size and version; skips bytes before the range."""
        body, status = opened.body, opened.body.status
        if status in (404, 410):
            raise _changed(self.uri, "it is gone") if self._listed else missing(self.uri)
        if status == 412 or (status == 416 and self.size != 0 and self._listed):
            raise _changed(self.uri, "another one is there")
        span, _, total = body.headers.get("Content-Range", "").rpartition("/")
        if status == 206 and not span.startswith(f"bytes {self._position}-"):
            raise BusyError(f"byte {self._position} was asked for, and {span or 'no range'} came")
        size = int(total) if total.isdecimal() else None if status == 206 else _length(body)
        if size is None and not self._listed and self._stop is not None:
            raise RunError(f"{without_query(self.uri)}: expected a server that says how large it is (Content-Length)")
        if size is not None and self.size not in (None, size):
            raise _changed(self.uri, f"{size} bytes instead of {self.size}")
        if self._listed and size is not None and self._stop is not None and size < self._stop:
            raise _changed(self.uri, f"{size} bytes, and byte {self._stop - 1} is asked for")
        version = self._version_of(opened, address)
        if self.version and version and not same_version(version, self.version):
            raise _changed(self.uri, "another one is there")
        self.version = self.version or version
        if size is not None:
            self.size, self._stop = size, size if self._stop is None else min(self._stop, size)
        if status == 200:  # a server without range requests sends everything from the beginning
            skipped = 0
            while skipped < self._position:
                piece = read_piece(opened, min(_PIECE, self._position - skipped), self.uri)
                if not piece:
                    raise BusyError(f"the transfer ended at byte {skipped}")
                skipped += len(piece)

    def _version_of(self, opened: Opened, address: Address) -> str | None:
        headers, scheme = opened.body.headers, scheme_of(self.uri)
        if scheme == "gs":
            return headers.get("X-Goog-Generation")
        if scheme == "hf":
            found = opened.linked or address.version or (headers.get("ETag") if opened.url == address.url else None)
            return found.removeprefix("W/").strip('"') if found else None
        return headers.get("ETag") or headers.get("Last-Modified")

    def _hint(self, address: Address) -> str:
        if scheme_of(self.uri) not in WEB:
            return ""
        if "Authorization" in address.headers:
            return f"; {TOKEN} or ~/.netrc holds another one"
        if scheme_of(self.uri) == "https":
            return f"; {TOKEN} or ~/.netrc may hold a token"
        return f"; {TOKEN} and ~/.netrc go over https:// only"


class _File:
    """The same for a file:// URI, with the system's reads."""

    def __init__(self, uri: str, start: int, stop: int | None, version: str | None, size: int | None = None) -> None:
        self.uri, self._position, self._stop, self._version, self._size = uri, start, stop, version, size
        self._path = uri.partition("://")[2]
        self._file: int | None = None

    def read(self) -> bytes:
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDONLY)
            info = os.fstat(self._file)
            piece = os.pread(self._file, self._left(info.st_size), self._position)
        except OSError as error:
            self.close()
            if isinstance(error, FileNotFoundError) and self._version is not None:
                raise _changed(self.uri, "it is gone") from None
            raise
        changed = self._version is not None and str(info.st_mtime_ns) != self._version
        if changed or (self._size is not None and info.st_size != self._size):
            raise _changed(self.uri, "another one is there")
        if not piece and self._stop is not None and self._position < self._stop:
            raise _changed(self.uri, f"{info.st_size} bytes, and byte {self._stop - 1} is asked for")
        self._position += len(piece)
        return piece

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _left(self, size: int) -> int:
        return max(0, min(_PIECE, (size if self._stop is None else self._stop) - self._position))


def _changed(uri: str, what: str) -> ChangedError:
    return ChangedError(
        f"{without_query(uri)}: it changed after it was listed ({what}): run again, after deit-fast data index where "
        "the data has an index"
    )


def _length(body: object) -> int | None:
    value = body.headers.get("Content-Length", "")  # type: ignore[attr-defined]
    return int(value) if value.isdecimal() else None


def same_version(one: str, other: str) -> bool:
    """Whether two ETags mean the same content: some stores quote them in one response and not in the next."""
    return one.removeprefix("W/").strip('"') == other.removeprefix("W/").strip('"')
