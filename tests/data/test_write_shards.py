"""Shards that are written hold the images they were made from, also after an interruption."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_fast.cli.main import main
from deit_fast.data.sources.open import Source, find_validation, open_source
from deit_fast.data.tools.write_shards import enlarged_share, write_shards
from deit_fast.runtime.errors import DataError

WORKERS = 2


def by_content(source: Source) -> list[tuple[bytes, int]]:
    return sorted((source.read(index).tobytes(), int(source.labels[index])) for index in range(len(source)))


def test_without_a_size_the_files_are_stored_as_they_are(folder_data: Path, tmp_path: Path) -> None:
    assert main(["data", "shard", str(folder_data), str(tmp_path), "--per-shard", "40", "--workers", "2"]) == 0
    for split, shards in (("train", 3), ("val", 1)):
        source = open_source(str(tmp_path), split)
        assert by_content(source) == by_content(open_source(str(folder_data), split))
        assert source.classes == ["class0", "class1", "class2"]
        assert len(list(tmp_path.glob(f"{split}-*.tar"))) == shards
    labels = open_source(str(tmp_path), "train").labels
    assert (np.diff(labels) != 0).sum() > 40  # shuffled: readers that go through a shard see all classes


def test_resized_images_are_pils(folder_data: Path, tmp_path: Path) -> None:
    source = open_source(str(folder_data), "val")
    written = write_shards(source, tmp_path, "val", 44, 20, WORKERS)
    stored = open_source(str(tmp_path / "val-*.tar"))
    places = {int(Path(stored.name(index).rpartition(":")[2]).stem): index for index in range(len(stored))}
    resized = 0
    for index in range(len(source)):
        original = Image.open(io.BytesIO(source.read(index).tobytes()))
        found = Image.open(io.BytesIO(stored.read(places[index]).tobytes()))
        if min(original.size) <= 44:
            assert stored.read(places[index]).tobytes() == source.read(index).tobytes()
            continue
        resized += 1
        scale = 44 / min(original.size)
        assert min(found.size) == 44
        assert max(found.size) == int(max(original.size) * scale + 1e-9)
        expected = original.resize(found.size, Image.Resampling.BICUBIC)
        assert np.abs(np.float32(found) - np.float32(expected)).mean() < 2.5  # of JPEG at quality 95
    assert written.resized == resized > 5


def test_going_on_writes_what_is_missing_or_broken(folder_data: Path, tmp_path: Path) -> None:
    source = open_source(str(folder_data), "train")
    assert write_shards(source, tmp_path, "train", 32, 16, WORKERS).kept_shards == 0
    expected = by_content(open_source(str(tmp_path / "train-*.tar")))
    untouched = (tmp_path / "train-000003.tar").stat().st_mtime_ns
    (tmp_path / "train-000001.tar").unlink()
    cut = tmp_path / "train-000002.tar"
    cut.write_bytes(cut.read_bytes()[:-20_000])
    assert write_shards(source, tmp_path, "train", 32, 16, WORKERS).kept_shards == 4
    assert by_content(open_source(str(tmp_path / "train-*.tar"))) == expected
    assert (tmp_path / "train-000003.tar").stat().st_mtime_ns == untouched


def test_what_cannot_be_is_one_line(folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source(str(folder_data), "train")
    write_shards(source, tmp_path, "train", None, 48, WORKERS)
    with pytest.raises(DataError, match=r"train\.json: expected size None as its shards have it, got 32"):
        write_shards(source, tmp_path, "train", 32, 48, WORKERS)
    with pytest.raises(DataError, match=r"expected no shards but those written now, found train-000001\.tar"):
        write_shards(source, tmp_path, "train", None, 96, WORKERS)
    with pytest.raises(SystemExit):
        main(["data", "shard", str(folder_data), str(tmp_path / "b"), "--size", "0"])
    assert "argument --size: expected a number of 1 or more, got '0'" in capsys.readouterr().err


def test_an_image_that_cannot_be_decoded_is_named(folder_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "a"
    folder.mkdir(parents=True)
    whole = next(folder_data.glob("train/*/*.jpg")).read_bytes()
    (folder / "whole.jpg").write_bytes(whole)
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"half\.jpg: expected an image, found"):
        write_shards(open_source(str(tmp_path / "data")), tmp_path / "out", "train", 8, 10, WORKERS)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_enlarged_share() -> None:
    # A square crop of u of a 448 px square is enlarged below u = 1/4; wider and taller ones somewhat later.
    share = enlarged_share(np.full((200, 2), 448, np.int32))
    assert 0.17 / 0.92 < share < 0.4
    assert enlarged_share(np.full((50, 2), 4000, np.int32)) == 0
    assert enlarged_share(np.full((50, 2), 200, np.int32)) == 1


def test_splits_that_are_named_alone_keep_their_names(
    folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val = str(folder_data / "val")
    words = ["data", "shard", val, str(tmp_path / "out"), "--workers", "1"]
    assert main(["data", "check", val, "--threads", "1"]) == main(words) == 0
    told = capsys.readouterr().out
    assert f"{val}, val: " in told
    assert "\nval: " in told
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "classes.txt", "val-000000.tar", "val.index.json", "val.index.npy", "val.json",
    }  # fmt: skip
    (tmp_path / "more" / "x").mkdir(parents=True)
    shutil.copy(next(folder_data.glob("val/*/*.jpg")), tmp_path / "more" / "x")
    with pytest.raises(DataError, match=r"classes\.txt: expected the 1 classes of .*, found 3 others"):
        write_shards(open_source(str(tmp_path / "more")), tmp_path / "out", "train", None, 48, 1)
    assert main(["data", "shard", str(folder_data / "train"), *words[3:]]) == 0
    assert find_validation(str(tmp_path / "out")) == str(tmp_path / "out" / "val-*.tar")
    assert len(open_source(str(tmp_path / "out"), "train").classes) == 3
