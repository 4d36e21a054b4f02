"""The state of store_server.py: its behaviour and a log of requests; and the answer for a file in its folder."""

import asyncio
import base64
import calendar
import hashlib
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path

_HASHED_BYTES = 1 << 20  # larger files are identified by inode, size and time


@dataclass
class Request:
    """A request in the log: the question, and then the answer."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """Header names in lower case."""
    body: bytes = b""
    status: int = 0
    sent: int = 0
    """Bytes of the body that were sent."""

    @property
    def range(self) -> tuple[int, int | None] | None:
        """First and last byte asked for with `bytes=first-last` or `bytes=first-`; else None."""
        kind, _, span = self.headers.get("range", "").partition("=")
        first, _, last = span.partition("-")
        return (int(first), int(last) if last else None) if kind == "bytes" and first else None


@dataclass
class Answer:
    """An answer: a body, or a part of a file."""

    status: int
    body: bytes | Path = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Store:
    """The store's state, which a test may change while the store serves."""

    root: Path
    latency: float = 0.0
    """Seconds before each answer."""
    rate: float = math.inf
    """Bytes per second of all bodies together."""
    token: str | None = None
    """The token expected in `Authorization: Bearer`, or the password of `Basic`. /token gives it to gs."""
    access_key: str | None = None
    """The key that S3's signatures have to name. Expired signatures are always refused."""
    unavailable: float = 0.0
    """Fraction of answers with status 503."""
    cut: float = 0.0
    """Fraction of bodies that end in the middle."""
    fault: Callable[[Request], str] = lambda request: ""
    """The fault of a request. "": none. "503", "429", ...: this status. "302 URL": a redirect. "cut": the body ends in
    the middle. "short": half of the body, with its Content-Length. "whole": the whole object instead of a range.
    "shift": the next range. "drop": no answer. "stall": nothing for `stall_seconds` after the head."""
    retry_after: str = ""
    """The header Retry-After of 429 and 503, if any."""
    stall_seconds: float = 3600.0
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    _free_at: float = 0.0
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which s3fs, gcsfs and huggingface_hub use this store."""
        return {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1", "STORAGE_EMULATOR_HOST": self.url,
                "HF_ENDPOINT": self.url}  # fmt: skip

    def count(self, method: str = "GET", end: str = "") -> int:
        """The number of requests so far with this method whose path ends with `end`."""
        return sum(each.method == method and each.path.endswith(end) for each in self.requests)

    def place(self, path: str) -> Path:
        """The file or folder at a path of this store."""
        place = (self.root / path.strip("/")).resolve()
        return place if place.is_relative_to(self.root.resolve()) else self.root / "nowhere"

    async def pace(self, count: int) -> None:
        """Waits until `count` more bytes may be sent."""
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + count / self.rate
        if self._free_at - now > 0.002:
            await asyncio.sleep(self._free_at - now)

    def choose_fault(self, request: Request) -> str:
        if chosen := self.fault(request):
            return chosen
        if self._random.random() < self.unavailable:
            return "503"
        return "cut" if self._random.random() < self.cut else ""

    def admits(self, request: Request) -> bool:
        """Whether the request has the token, or an S3 signature that has not expired."""
        query, given = request.query, request.headers.get("authorization", "")
        if signature := query.get("X-Amz-Credential") or given.partition("AWS4-HMAC-SHA256 Credential=")[2]:
            if self.access_key not in (None, signature.partition("/")[0]):
                return False
            signed = calendar.timegm(time.strptime(query.get("X-Amz-Date", "20990101T000000Z"), "%Y%m%dT%H%M%SZ"))
            return time.time() < signed + int(query.get("X-Amz-Expires", 0))
        if self.token is None or request.path == "/token" or request.path.startswith("/cdn/"):
            return True
        kind, _, value = given.partition(" ")
        if kind == "Basic":
            value = base64.b64decode(value).decode().partition(":")[2]
        return value == self.token


def version(path: Path) -> str:
    """32 hexadecimal digits that change with the content (for large files: whenever they are written)."""
    info = path.stat()
    known = (
        path.read_bytes()
        if info.st_size <= _HASHED_BYTES
        else f"{info.st_ino} {info.st_size} {info.st_mtime_ns}".encode()
    )
    return hashlib.md5(known).hexdigest()


def answer_object(store: Store, request: Request) -> Answer:
    """Answers GET or HEAD of a file; other protocols use it once they know the file."""
    path = store.place(request.path)
    if not path.is_file():
        return Answer(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
    etag = f'"{version(path)}"'
    if request.headers.get("if-match", etag) != etag:
        return Answer(412, b"<Error><Code>PreconditionFailed</Code><Message>changed</Message></Error>")
    modified = formatdate(path.stat().st_mtime, usegmt=True)
    return Answer(200, path, {"ETag": etag, "Accept-Ranges": "bytes", "Last-Modified": modified})
