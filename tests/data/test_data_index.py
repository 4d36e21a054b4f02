"""`deit-fast data index`: of shards here and in a store, beside them and in a folder that stands for them."""

import json
from pathlib import Path

import numpy as np
import pytest

from deit_fast.cli.main import main
from deit_fast.data.sources import index_objects
from deit_fast.data.sources.open import open_source
from deit_fast.runtime.object_store import Object
from tests.data.test_shard_index import by_tarfile, contents, shards
from tests.image_files import samples, write, write_tar
from tests.object_store import serve

pytestmark = pytest.mark.usefixtures("cache")


def rows(path: Path) -> list[tuple[int, int, int]]:
    return np.load(path).tolist()


def test_of_shards_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = shards(tmp_path / "set")
    val = write_tar(tmp_path / "set" / "val-0.tar", samples(50, 2))
    assert main(["data", "index", str(tmp_path / "set"), "--out", str(tmp_path / "index")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path}/index/train.index.json: 12 images of 3 classes in 3 shards, ")
    assert second.startswith(f"{tmp_path}/index/val.index.json: 2 images of 3 classes in 1 shards, ")
    said = json.loads((tmp_path / "index" / "train.index.json").read_text())
    assert [shard[0] for shard in said["shards"]] == list(map(str, paths))
    assert rows(tmp_path / "index" / "train.index.npy") == rows(tmp_path / "set" / "train.index.npy")
    assert main(["data", "index", str(val)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/set: 2 images of 3 classes in 1 shards, ")


def test_what_cannot_be_indexed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "images" / "a" / "x.jpg", b"x")
    shards(tmp_path / "set")
    bad = write(tmp_path / "set" / "train-01.tar", b"no tar" * 200)
    for place, words in (
        (tmp_path / "images", f"{tmp_path}/images: expected .tar shards (deit-fast data shard makes them), found none"),
        (
            tmp_path / "nowhere",
            f"{tmp_path}/nowhere: expected .tar shards (deit-fast data shard makes them), found none",
        ),
        (tmp_path / "set", f"{bad}: expected an uncompressed .tar of KEY.jpg and KEY.cls, found no members"),
        (f"file://{tmp_path}/set", f"file://{bad}: expected an uncompressed .tar of KEY.jpg and KEY.cls, found no mem"),
    ):
        assert main(["data", "index", str(place), "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_of_shards_in_a_store(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = shards(tmp_path / "set")
    streamed: list[str] = []
    plain = index_objects.stream_object

    def stream_object(wanted: Object) -> object:
        streamed.append(wanted.name)
        return plain(wanted)

    monkeypatch.setattr(index_objects, "stream_object", stream_object)
    uri = f"file://{tmp_path}/set"
    if scheme == "s3":
        with serve(monkeypatch) as store:
            for path in paths:
                store.put(f"set/{path.name}", path)
            check_store("s3://bucket/set", paths, tmp_path, streamed)
    else:
        check_store(uri, paths, tmp_path, streamed)


def check_store(uri: str, paths: list[Path], folder: Path, streamed: list[str]) -> None:
    assert main(["data", "index", uri, "--out", str(folder / "out")]) == 0
    assert sorted(streamed) == [path.name for path in paths]
    said = json.loads((folder / "out" / "train.index.json").read_text())
    assert [shard[0] for shard in said["shards"]] == [f"{uri}/{path.name}" for path in paths]
    streamed.clear()
    assert main(["data", "index", uri, "--out", str(folder / "out")]) == 0  # nothing has changed
    assert streamed == []
    assert main(["data", "index", uri]) == 0
    assert len(streamed) == 3
    source = open_source(uri, "train")
    assert type(source).__name__ == "StreamedShards"
    assert contents(source) == by_tarfile(paths)
    open_source(str(folder / "set"), "train")
    assert rows(folder / "out" / "train.index.npy") == rows(folder / "set" / "train.index.npy")
