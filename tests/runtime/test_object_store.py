"""Shards in an object store: indexed once, anew when they changed; and a line for all that is refused."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.registry import _registry

from deit_fast.cli.main import main
from deit_fast.data.sources.list_shards import ListedShards
from deit_fast.data.sources.open import find_validation, open_source
from deit_fast.runtime import patience
from deit_fast.runtime.errors import DataError, RunError, StorageError
from deit_fast.runtime.object_store import ChangedError, cached_place, fetch, fetching, find_object, partial_place
from tests.image_files import refused, samples, write, write_tar
from tests.object_store import S3, serve

pytestmark = pytest.mark.usefixtures("cache")
SHARDS = "s3://bucket/set/train-{0..2}.tar"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 1.0)
    with serve(monkeypatch) as store:
        yield store


def put_shards(store: S3, folder: Path) -> dict[str, bytes]:
    members = {}
    for number in range(3):
        part = samples(10 * number, 4)
        store.put(f"set/train-{number}.tar", write_tar(folder / "t.tar", part))
        members |= part
    store.put("set/val-0.tar", write_tar(folder / "t.tar", samples(50, 2)))
    return {name: data for name, data in members.items() if name.endswith(".jpg")}


def contents(uri: str, split: str | None = None) -> list[bytes]:
    source = open_source(uri, split)
    return [source.read(index).tobytes() for index in range(len(source))]


@pytest.mark.parametrize(
    ("uri", "split"),
    [
        (SHARDS, None),
        ("s3://bucket/set/train-*.tar", None),
        ("s3://bucket/set", "train"),
        ("s3://bucket/set/", "train"),
    ],
)
def test_every_way_to_name_shards(store: S3, tmp_path: Path, uri: str, split: str | None) -> None:
    images = put_shards(store, tmp_path)
    assert contents(uri, split) == list(images.values())
    assert find_validation(uri) == "s3://bucket/set/val-*.tar"
    assert len(contents("s3://bucket/set/val-*.tar", "val")) == 2
    assert open_source(uri, split).labels.tolist() == [
        number % 3 for first in (0, 10, 20) for number in range(first, first + 4)
    ]


def test_splits_in_folders_and_names_of_classes(store: S3, tmp_path: Path) -> None:
    for split, count in (("train", 5), ("val", 3)):
        store.put(f"set/{split}/a-0.tar", write_tar(tmp_path / "t.tar", samples(0, count)))
        store.put(f"set/{split}/classes.txt", b"red\ngreen\nblue\nblack\n")
    assert len(open_source("s3://bucket/set", "train")) == 5
    assert open_source("s3://bucket/set/val").classes == ["red", "green", "blue", "black"]
    assert find_validation("s3://bucket/set") == find_validation("s3://bucket/set/train") == "s3://bucket/set/val"
    store.files.rm_file("bucket/set/val/classes.txt")
    assert open_source("s3://bucket/set/val").classes == ["0", "1", "2"]
    assert "expected one split" in refused("s3://bucket/set")


def test_file_uris(tmp_path: Path, cache: Path) -> None:
    write_tar(tmp_path / "set" / "train-0.tar", samples(0, 3))
    assert len(contents(f"file://{tmp_path}/set", "train")) == 3
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["train-0.tar"]  # its index is in the cache
    assert list(cache.rglob("*.index.npy"))
    assert "no such object" in refused(f"file://{tmp_path}/set/train-9.tar")


def test_indexed_once_and_anew_when_changed(store: S3, tmp_path: Path) -> None:
    images = put_shards(store, tmp_path)
    for _ in range(2):
        before = open_source(SHARDS)
    assert [store.count("GET", f"train-{number}.tar") for number in range(3)] == [1, 1, 1]
    changed = samples(100, 4)
    store.put("set/train-0.tar", write_tar(tmp_path / "t.tar", changed))
    after = open_source(SHARDS)
    assert [store.count("GET", f"train-{number}.tar") for number in range(3)] == [2, 1, 1]
    assert [after.read(index).tobytes() for index in range(4)] == [changed[f"s{100 + n}.jpg"] for n in range(4)]
    assert before.read(4).tobytes() == images["s010.jpg"]
    with pytest.raises(ChangedError, match=r"s3://bucket/set/train-0\.tar: "):  # and no wrong pixels
        before.read(0)


def test_two_processes_fetch_once(store: S3, tmp_path: Path) -> None:
    put_shards(store, tmp_path)
    store.seen.clear()

    def wait_for_both(method: str, path: str) -> str:
        deadline = time.monotonic() + 60
        while path.endswith(".tar") and method == "GET" and store.count("GET", "/bucket") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5 if path.endswith(".tar") else 0)
        return ""

    store.fault = wait_for_both
    program = "import sys; from deit_fast.data.sources.open import open_source; print(len(open_source(sys.argv[1])))"
    racers = [
        subprocess.Popen([sys.executable, "-c", program, SHARDS], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [racer.communicate(timeout=60)[0] for racer in racers] == ["12\n"] * 2
    assert [store.count("GET", f"train-{number}.tar") for number in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("fault", ["500", "cut"])
def test_failures_that_pass(store: S3, tmp_path: Path, fault: str) -> None:
    images = put_shards(store, tmp_path)
    left = [3]

    def fail(method: str, path: str) -> str:
        left[0] -= method == "GET" and path.endswith("-1.tar")
        return fault if left[0] >= 0 and path.endswith("-1.tar") else ""

    store.fault = fail
    assert contents(SHARDS) == list(images.values())
    assert left[0] < 0


@pytest.mark.parametrize("fault", ["500", "cut"])
def test_failures_that_stay_are_one_line_and_leave_a_beginning_at_most(
    store: S3, tmp_path: Path, cache: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = put_shards(store, tmp_path)
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.05)
    store.fault = lambda method, path: fault if path.endswith("-1.tar") and method == "GET" else ""
    message = refused(SHARDS, kind=StorageError)
    assert message.startswith("s3://bucket/set/train-1.tar: cannot be reached (")
    assert "Signature" not in message
    assert not [path for path in cache.rglob("train-1*") if path.suffix != ".lock"]
    store.fault = lambda method, path: ""
    assert contents(SHARDS) == list(images.values())
    assert not list(cache.rglob("*.part"))


def test_what_a_store_refuses(store: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_shards(store, tmp_path)
    assert "expected 5 shards, 2 missing, s3://bucket/set/train-3.tar" in refused("s3://bucket/set/train-{0..4}.tar")
    assert "found none in s3://bucket/nothing" in refused("s3://bucket/nothing", "train")
    assert refused("s3://other/set/train-0.tar").startswith("s3://other: no such object or bucket")
    assert refused("abc://other/set").startswith("abc://other/set: expected a path, s3://, gs://, hf://, http://, ")
    store.files.rm_file("bucket/set/train-1.tar")
    assert "number 1 is missing" in refused("s3://bucket/set", "train")
    with pytest.raises(RunError, match=r"s3://bucket/none\.pt: no such object"):
        find_object("s3://bucket/none.pt")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(_registry, "gs", raising=False)
    assert refused("gs://b/a.tar") == "gs://b: expected gcsfs, not installed: pip install 'deit_fast[cloud]'"


def test_no_credentials(store: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    type(store.files).clear_instance_cache()
    assert "s3://bucket/set: expected credentials for the store" in refused("s3://bucket/set", "train")


def test_access_denied(store: S3) -> None:
    store.fault = lambda method, path: "403"
    assert "s3://bucket/set: access denied" in refused("s3://bucket/set", "train")


def test_an_object_that_changes_while_it_is_fetched(store: S3, tmp_path: Path) -> None:
    uri = store.put("a.bin", b"one")
    listed = find_object(uri)
    store.put("a.bin", b"two")
    with pytest.raises(RunError, match="it changed after it was listed"):
        fetch(listed)
    assert fetch(find_object(uri)).read_bytes() == b"two"


def test_what_a_killed_process_left_is_the_beginning(store: S3) -> None:
    content = bytes(range(256)) * 10
    listed = find_object(store.put("a.bin", content))
    place = cached_place(listed)
    write(partial_place(listed, place), content[:1000])
    old = write(partial_place(listed._replace(version="another"), place), b"of another version")
    assert fetch(listed).read_bytes() == content
    assert [path.name for path in place.parent.iterdir() if path.suffix != ".lock"] == [place.name]
    assert not old.exists()


def test_too_small_a_disk_is_known_before(store: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_shards(store, tmp_path)
    usage = fetching.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"GiB free for s3://bucket/set/train-\{0\.\.2\}\.tar, found 0\.0"):
        open_source(SHARDS, open_shards=ListedShards)  # which a check fetches before it looks at them
    assert store.count("GET", ".tar") == 0


def test_paths_of_results_are_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", "images", "--out", "s3://bucket/bad.txt"])
    assert ended.value.code == 2
    assert "--out: expected a path on this machine, got s3://bucket/bad.txt" in capsys.readouterr().err
