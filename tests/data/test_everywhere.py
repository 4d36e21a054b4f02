"""The same data by every URI: a bucket of S3's or Google's, the Hugging Face Hub, a web server, a mounted disk."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.list_shards import ListedShards
from deit_fast.data.sources.open import find_validation, open_source, open_splits
from deit_fast.data.sources.salvage import SalvagedShards
from deit_fast.data.sources.streamed_shards import StreamedShards
from deit_fast.runtime import patience
from tests.image_files import refused, samples, write, write_tar
from tests.loopback import SCHEMES, Store, place, serve_loopback

TRAIN = {f"train-{number}.tar": samples(10 * number, 3 + number) for number in range(3)}
VAL = {"val-0.tar": samples(50, 4)}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Store]:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 1.0)
    with serve_loopback(monkeypatch, tmp_path) as store:
        yield store


@pytest.fixture(params=SCHEMES)
def somewhere(request: pytest.FixtureRequest, store: Store) -> tuple[str, Path]:
    """A URI, and the folder of this machine that it is."""
    uri, folder = place(store, request.param)
    return f"{uri}/data", folder / "data"


def write_shards(folder: Path, index: bool, inside: tuple[str, str] = ("", "")) -> None:
    for shards, where in zip((TRAIN, VAL), inside, strict=True):
        for name, members in shards.items():
            write_tar(folder / where / name, members)
    write(folder / inside[0] / "classes.txt", b"red\ngreen\nblue\n")
    write(folder / inside[1] / "classes.txt", b"red\ngreen\nblue\n")
    if index:  # which is made beside them
        for split in ("train", "val"):
            open_source(str(folder), split)


def check_images(source: Source, shards: dict[str, dict[str, bytes]]) -> None:
    members = {name: data for each in shards.values() for name, data in each.items()}
    images = {name: data for name, data in members.items() if name.endswith(".jpg")}
    assert [source.read(index).tobytes() for index in range(len(source))] == list(images.values())
    assert source.labels.tolist() == [int(members[name.replace(".jpg", ".cls")]) for name in images]
    assert source.classes == ["red", "green", "blue"]
    assert [source.name(index).rpartition(":")[2] for index in range(len(source))] == list(images)


def test_shards_with_an_index(somewhere: tuple[str, Path]) -> None:
    uri, folder = somewhere
    write_shards(folder, index=True)
    validation = f"{uri}/val.index.json" if uri.startswith("http") else f"{uri}/val-*.tar"
    named = [f"{uri}/train-{{0..2}}.tar", f"{uri}/train.index.json"]
    for name in [uri, f"{uri}/", *named]:
        source = open_source(name, "train")
        assert isinstance(source, StreamedShards), name
        check_images(source, TRAIN)
        assert find_validation(name) == validation
    check_images(open_source(uri, "val"), VAL)
    check_images(open_source(validation, "val"), VAL)
    assert list(open_splits(uri, None)) == ["train", "val"]
    some = open_source(f"{uri}/train-{{1..2}}.tar", "train")
    check_images(some, {name: TRAIN[name] for name in ("train-1.tar", "train-2.tar")})


def test_shards_without_an_index(somewhere: tuple[str, Path]) -> None:
    uri, folder = somewhere
    write_shards(folder, index=False)
    check_images(open_source(f"{uri}/train-{{0..2}}.tar", "train"), TRAIN)
    check_images(open_source(f"{uri}/val-0.tar", "val"), VAL)
    assert "expected 5 shards, 2 missing, " in refused(f"{uri}/train-{{0..4}}.tar")
    if uri.startswith("http"):
        assert f"{uri}: expected the index of tar shards (deit-fast data index), or " in refused(uri, "train")
        assert "since a web server lists no folders" in refused(f"{uri}/train-*.tar")
        assert find_validation(f"{uri}/train-{{0..2}}.tar") is None
        return
    check_images(open_source(uri, "train"), TRAIN)
    check_images(open_source(f"{uri}/train-*.tar"), TRAIN)
    assert find_validation(f"{uri}/train-{{0..2}}.tar") == f"{uri}/val-*.tar"


def test_a_folder_for_each_split(somewhere: tuple[str, Path]) -> None:
    uri, folder = somewhere
    write_shards(folder, index=True, inside=("train", "validation"))
    check_images(open_source(uri, "train"), TRAIN)
    check_images(open_source(uri, "val"), VAL)
    assert find_validation(uri) == find_validation(f"{uri}/train") == f"{uri}/validation"
    check_images(open_source(f"{uri}/validation"), VAL)


def test_an_index_says_where_the_shards_are(somewhere: tuple[str, Path], tmp_path: Path) -> None:
    uri, folder = somewhere
    write_shards(folder, index=True)
    for split in ("train", "val"):
        content = json.loads((folder / f"{split}.index.json").read_bytes())
        for shard in content["shards"]:
            shard[0] = f"{uri}/{shard[0]}"
        write(tmp_path / "index" / f"{split}.index.json", json.dumps(content).encode())
        write(tmp_path / "index" / f"{split}.index.npy", (folder / f"{split}.index.npy").read_bytes())
        (folder / f"{split}.index.json").unlink()
    known = str(tmp_path / "index")
    check_images(open_source(known, "train"), TRAIN)
    check_images(open_source(known, "val"), VAL)
    assert find_validation(known) == f"{known}/val.index.json"
    check_images(open_source(f"{known}/val.index.json"), VAL)
    assert refused(known).startswith(f"{known}: expected one split, found several; name {known}/train.index.json or ")
    (tmp_path / "index" / "val.index.json").unlink()
    assert "expected val.index.json; to take other images, name " in refused(known, "val")
    (folder / "train-1.tar").unlink()
    assert "expected 3 shards, 1 missing, " in refused(known, "train")


def test_whatever_is_wrong_is_one_line(somewhere: tuple[str, Path]) -> None:
    uri, folder = somewhere
    write_shards(folder, index=True)
    write(folder / "train.index.json", b"{}")
    assert f"{uri}/train.index.json: expected " in refused(uri, "train")
    assert "found no such object" in refused(f"{uri}/train-9.tar")
    assert "found no such object" in refused(f"{uri}/test.index.json")
    assert refused(f"{uri}/nothing").startswith(f"{uri}/nothing: expected ")


def transfers(store: Store) -> dict[str, int]:
    """How often each shard was asked for in the whole."""
    asked = Counter(each.path.rpartition("/")[2] for each in store.requests if each.range is None)
    return {name: count for name, count in asked.items() if name.endswith(".tar")}


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_an_index_is_made_once_and_of_what_changed(store: Store, scheme: str) -> None:
    uri, folder = place(store, scheme)
    write_shards(folder, index=False)
    shards = f"{uri}/train-{{0..2}}.tar"
    for _ in range(2):
        check_images(open_source(shards, "train"), TRAIN)
        assert transfers(store) == dict.fromkeys(TRAIN, 1)
    changed = {**TRAIN, "train-1.tar": samples(80, 5)}
    write_tar(folder / "train-1.tar", changed["train-1.tar"])
    check_images(open_source(shards, "train"), changed)
    assert transfers(store) == {**dict.fromkeys(TRAIN, 1), "train-1.tar": 2}
    write(folder / "classes.txt", b"red\ngreen\nblue\nblack\n")
    assert open_source(shards, "train").classes == ["red", "green", "blue", "black"]


def test_a_cache_folder_that_takes_nothing(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, folder = place(store, "http")
    write_shards(folder, index=False)
    (folder / "classes.txt").unlink()
    write(cache, b"no folder")
    source = open_source(f"{uri}/train-{{0..2}}.tar", "train")
    assert source.classes == ["0", "1", "2"]
    assert [source.read(index).tobytes() for index in range(2)] == [TRAIN["train-0.tar"][f"s00{n}.jpg"] for n in (0, 1)]
    assert f"the index of the shards cannot be written to {cache} (" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["gs", "http"])
def test_damaged_shards_of_a_store(store: Store, scheme: str) -> None:
    uri, folder = place(store, scheme)
    write_shards(folder, index=False)
    whole = (folder / "train-1.tar").read_bytes()
    (folder / "train-1.tar").write_bytes(whole[: len(whole) // 2 + 100])
    shards = f"{uri}/train-{{0..2}}.tar"
    assert refused(shards).startswith(f"{uri}/train-1.tar: expected a whole tar file, found it cut off")
    salvaged = open_source(shards, "train", open_shards=SalvagedShards)
    here = open_source(f"{folder}/train-{{0..2}}.tar", "train", open_shards=SalvagedShards)
    assert isinstance(salvaged, SalvagedShards)
    assert salvaged.labels.tolist() == here.labels.tolist()
    assert len(salvaged.describe()) == 1
    checked = open_source(shards, "train", open_shards=ListedShards)
    assert isinstance(checked, ListedShards)
    assert len(checked.faults) == 1


def test_a_right_to_read_in_the_query_is_for_all_files_and_told_nowhere(store: Store, cache: Path) -> None:
    uri, folder = place(store, "http")
    write_shards(folder / "a", index=True)
    write_shards(folder / "b", index=True, inside=("train", "val"))
    write_shards(folder / "c", index=False)
    store.fault = lambda request: "" if request.query.get("sig") == "right" else "403"
    for name in ("a?sig=right", "a/?sig=right", "b?sig=right", "c/train-{0..2}.tar?sig=right"):
        source = open_source(f"{uri}/{name}", "train")
        check_images(source, TRAIN)
        assert "sig" not in source.name(0) + source.place
    for name, validation in (("a", "a/val.index.json"), ("b", "b/val"), ("b/train", "b/val")):
        assert find_validation(f"{uri}/{name}?sig=right") == f"{uri}/{validation}?sig=right"
        check_images(open_source(f"{uri}/{validation}?sig=right", "val"), VAL)
    assert not [path for path in cache.rglob("*.json") if b"sig" in path.read_bytes()]
    for name in ("c/train-{0..5}.tar", "c", "c/train-*.tar", "c/test.index.json", "none"):
        message = refused(f"{uri}/{name}?sig=right", "train")
        assert message.startswith(f"{uri}/")
        assert "sig" not in message
    for name in ("a", "c/train-{0..2}.tar"):
        message = refused(f"{uri}/{name}?sig=wrong", "train")
        assert "access denied (403 " in message
        assert "sig" not in message
