"""Ranges, whole objects and broken transfers of s3, gs, hf, http and file, against the files on the store's disk."""

import random
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from benchmarks.store_server import Store
from benchmarks.store_state import Request
from deit_fast.runtime import patience
from deit_fast.runtime.errors import RunError, StorageError
from deit_fast.runtime.object_store import (
    ChangedError,
    MissingError,
    cached_place,
    fetch,
    find_object,
    http_get,
    is_folder,
    list_objects,
    partial_place,
    read_object,
    read_range,
    stream_object,
)
from tests.loopback import SCHEMES, place, serve_loopback

pytestmark = pytest.mark.usefixtures("cache")
NETWORK = [scheme for scheme in SCHEMES if scheme != "file"]
CONTENT = random.Random(0).randbytes(3_000_000)
PASSING = ["500", "502", "503", "504", "429", "408", "drop", "cut"]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 1.0)
    with serve_loopback(monkeypatch, tmp_path) as store:
        yield store


def put(store: Store, scheme: str, content: bytes = CONTENT, name: str = "a-0.tar") -> tuple[str, Path]:
    uri, folder = place(store, scheme)
    (folder / name).write_bytes(content)
    return f"{uri}/{name}", folder / name


def asks_for_bytes(request: Request) -> bool:
    """Of a-0.tar; what the libraries ask is what is there."""
    return request.method == "GET" and request.path.endswith("a-0.tar") and (
        bool({"range", "if-match"} & set(request.headers))
        or "media" in request.query.values() or request.path.startswith("/cdn/")
    )  # fmt: skip


def reads(store: Store) -> list[Request]:
    return [each for each in store.requests if asks_for_bytes(each)]


def failing(times: int, fault: str) -> Callable[[Request], str]:
    """The first `times` requests for bytes of a-0.tar."""
    left = [times]

    def choose(request: Request) -> str:
        left[0] -= asks_for_bytes(request)
        return fault if asks_for_bytes(request) and left[0] >= 0 else ""

    return choose


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_read_is_what_lies_there(store: Store, scheme: str) -> None:
    uri, path = put(store, scheme)
    put(store, scheme, b"", "empty.txt")
    put(store, scheme, b"red\n", "classes.txt")
    (path.parent / "sub").mkdir()
    (path.parent / "sub" / "b.tar").write_bytes(b"b")
    folder = uri.rpartition("/")[0]
    found = find_object(uri)
    assert (found.size, found.name) == (len(CONTENT), "a-0.tar")
    if scheme == "http":
        with pytest.raises(RunError, match="a web server lists no folders"):
            list_objects(folder)
        assert not is_folder(uri)
    else:
        names, objects = list_objects(folder)
        assert names == {"sub"}
        assert objects == [found, *(find_object(f"{folder}/{name}") for name in ("classes.txt", "empty.txt"))]
        assert list_objects(f"{folder}/none") == (set(), [])
        assert is_folder(folder)
    draw = random.Random(1)
    for start, size in [(0, 1), (len(CONTENT) - 1, 1), (0, len(CONTENT)), *((draw.randrange(2_000_000), 300_000),) * 4]:
        assert read_range(uri, start, size, found.version) == CONTENT[start : start + size]
    assert read_range(f"{folder}/classes.txt", 1, 2, find_object(f"{folder}/classes.txt").version) == b"ed"
    assert b"".join(stream_object(found, 999_999)) == CONTENT[999_999:]
    assert read_object(f"{folder}/classes.txt") == b"red\n"
    assert read_object(f"{folder}/empty.txt") == fetch(find_object(f"{folder}/empty.txt")).read_bytes() == b""
    assert fetch(found).read_bytes() == CONTENT
    for ask in (find_object, read_object):
        with pytest.raises(MissingError, match=r"/none\.tar: no such "):
            ask(f"{folder}/none.tar")


@pytest.mark.parametrize("scheme", NETWORK)
def test_failures_that_pass(store: Store, scheme: str, tmp_path: Path) -> None:
    uri, _ = put(store, scheme)
    found = find_object(uri)
    for fault in PASSING:
        store.fault = failing(3, fault)
        assert read_range(uri, 1000, 400_000, found.version) == CONTENT[1000:401_000]
        store.fault = failing(3, fault)
        assert fetch(found, tmp_path / fault).read_bytes() == CONTENT
    for fault in ("short", "shift"):
        store.fault = failing(3, fault)
        assert read_range(uri, 1000, 400_000, found.version) == CONTENT[1000:401_000]


@pytest.mark.parametrize("scheme", NETWORK)
def test_a_transfer_goes_on_at_the_byte_reached(store: Store, scheme: str) -> None:
    uri, _ = put(store, scheme)
    found = find_object(uri)
    store.fault = failing(4, "cut")
    store.requests.clear()
    assert fetch(found).read_bytes() == CONTENT
    sent = [each for each in reads(store) if each.status in (200, 206)]
    assert [each.range[0] if each.range else 0 for each in sent] == [0, 1_500_000, 2_250_000, 2_625_000, 2_812_500]
    assert sum(each.sent for each in sent) == len(CONTENT)


def test_patience_begins_anew_with_each_piece(store: Store) -> None:
    """However often a transfer is cut: as long as something arrives, it is no outage."""
    uri, _ = put(store, "http")
    found = find_object(uri)
    store.fault = failing(18, "cut")  # more than patience has attempts
    assert fetch(found).read_bytes() == CONTENT


@pytest.mark.parametrize("scheme", NETWORK)
def test_a_stalled_transfer(store: Store, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_get, "READ_SECONDS", 0.3)
    uri, _ = put(store, scheme)
    found = find_object(uri)
    store.fault = failing(1, "stall")
    assert read_range(uri, 5, 10, found.version) == CONTENT[5:15]


def test_retry_after_is_obeyed_within_the_patience(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 60.0)
    uri, _ = put(store, "http")
    found = find_object(uri)
    for value, least, most in [("7", 7, 7), (formatdate(1e10, usegmt=True), 59, 60), ("-3", 0, 1), ("soon", 0, 1)]:
        store.retry_after, store.fault = value, failing(1, "429")
        waits: list[float] = []
        assert read_range(uri, 0, 3, found.version, waits.append) == CONTENT[:3]
        assert len(waits) == 1
        assert least <= waits[0] <= most


@pytest.mark.parametrize("scheme", NETWORK)
def test_failures_that_stay(
    store: Store, scheme: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, _ = put(store, scheme)
    found = find_object(uri)
    store.fault = failing(99, "503")
    waits: list[float] = []
    with pytest.raises(StorageError) as error:
        read_range(uri, 0, 3, found.version, waits.append)
    assert str(error.value).startswith(f"{uri}: cannot be reached (503 Service Unavailable), tried 8 times in ")
    assert len(waits) == 7
    with pytest.raises(StorageError, match="tried 1 times"):
        read_range(uri, 0, 3, found.version, lambda seconds: True)  # told to give up
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 3600.0)
    with pytest.raises(StorageError, match=r"tried \d times in 0 s"):  # within another read its patience counts
        patience.patiently(lambda: read_range(uri, 0, 3, found.version), "image 5", seconds=0.02)
    assert "Traceback" not in capfd.readouterr().err


def test_readers_do_not_come_back_all_at_once(store: Store) -> None:
    uri, _ = put(store, "http")
    found = find_object(uri)
    first = []
    for _ in range(5):
        waits: list[float] = []
        store.fault = failing(1, "503")
        read_range(uri, 0, 3, found.version, waits.append)
        first += waits
    assert len(set(first)) == 5


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("change", ["same size", "longer", "shorter", "gone"])
def test_a_replaced_object_is_never_read_as_the_old_one(store: Store, scheme: str, change: str) -> None:
    uri, path = put(store, scheme)
    found = find_object(uri)
    read_range(uri, 0, 10, found.version)
    new = {"same size": CONTENT[::-1], "longer": CONTENT + b"x", "shorter": CONTENT[:5]}
    if change == "gone":
        path.unlink()
    else:
        temporary = path.with_suffix(".new")
        temporary.write_bytes(new[change])
        temporary.replace(path)
    if scheme == "hf":  # where the Hub sent us is content by its hash; ask the Hub anew
        http_get_targets_forget()
    for read in (lambda: read_range(uri, 0, 10, found.version), lambda: fetch(found)):
        with pytest.raises(ChangedError, match=r"a-0\.tar: it changed after it was listed"):
            read()
    assert not cached_place(found).exists()
    if change != "gone":
        assert fetch(find_object(uri)).read_bytes() == new[change]


def http_get_targets_forget() -> None:
    from deit_fast.runtime.object_store import addresses

    addresses._kept.clear()


@pytest.mark.parametrize("scheme", ["s3", "gs", "http"])
def test_an_object_replaced_in_the_middle_of_its_transfer(store: Store, scheme: str) -> None:
    uri, path = put(store, scheme)
    found = find_object(uri)

    def cut_and_replace(request: Request) -> str:
        if not request.path.endswith("a-0.tar") or not reads(store):
            return ""
        if len(reads(store)) == 2:
            temporary = path.with_suffix(".new")
            temporary.write_bytes(CONTENT[::-1])
            temporary.replace(path)
        return "cut" if len(reads(store)) == 1 else ""

    store.requests.clear()
    store.fault = cut_and_replace
    with pytest.raises(ChangedError):
        fetch(found)
    assert not cached_place(found).exists()
    store.fault = lambda request: ""
    assert fetch(find_object(uri)).read_bytes() == CONTENT[::-1]
    assert not list(cached_place(found).parent.glob("*.part"))


def test_a_server_without_ranges(store: Store) -> None:
    uri, _ = put(store, "http")
    store.fault = lambda request: "whole"
    found = find_object(uri)
    assert found.size == len(CONTENT)
    assert read_range(uri, 2_000_000, 77, found.version) == CONTENT[2_000_000:2_000_077]
    partial = partial_place(found, cached_place(found))
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(CONTENT[:1234])
    assert fetch(found).read_bytes() == CONTENT


def test_a_full_disk_is_one_line_and_keeps_nothing(store: Store) -> None:
    uri, _ = put(store, "http")
    found = find_object(uri)
    partial = partial_place(found, cached_place(found))
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"a-0@\w+\.tar: cannot be written \(No space left on device\)"):
        fetch(found)
    assert not partial.is_symlink()
    assert fetch(found).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written(store: Store, tmp_path: Path) -> None:
    uri, _ = put(store, "http")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="cannot be written") as error:
        fetch(find_object(uri), tmp_path / "file" / "a.tar")
    assert not isinstance(error.value, StorageError)


def test_files_are_named_without_a_query(store: Store) -> None:
    uri, _ = put(store, "http")
    one, other = find_object(f"{uri}?download=1"), find_object(f"{uri}?download=2")
    assert one.name == "a-0.tar"
    assert cached_place(one) != cached_place(other)
    assert fetch(one).suffix == ".tar"
