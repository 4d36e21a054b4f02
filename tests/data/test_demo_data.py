"""The demo's digits: all of them, real, alike in both splits and the same every time."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_fast.data.sources.open import open_source
from deit_fast.data.tools.demo import write_demo
from deit_fast.runtime.errors import DataError

load_digits = pytest.importorskip("sklearn.datasets", reason="the demo's digits come with scikit-learn").load_digits


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo") / "runs" / "digits")


def test_the_split_is_whole_and_stratified(demo: Path) -> None:
    train, val = open_source(str(demo), "train"), open_source(str(demo), "val")
    assert (len(train), len(val)) == (1437, 360)
    assert train.classes == val.classes == [str(digit) for digit in range(10)]
    everything = np.bincount(load_digits().target)
    counts = np.bincount(val.labels)
    np.testing.assert_array_equal(np.bincount(train.labels) + counts, everything)
    assert np.abs(counts - everything * 360 / 1797).max() < 1


def test_images_are_the_digits_enlarged(demo: Path) -> None:
    digits = load_digits()
    paths = sorted(demo.glob("*/*/*.jpg"), key=lambda path: path.stem)
    assert [int(path.stem) for path in paths] == list(range(1797))
    for path in paths[::97]:
        original, label = digits.images[int(path.stem)], digits.target[int(path.stem)]
        assert path.parent.name == str(label)
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (64, 64))
            pixels = np.asarray(image).astype(np.float64)
        assert np.ptp(pixels, axis=2).max() <= 2  # grey
        assert pixels.max() > 200
        assert pixels.min() < 20
        blocks = pixels.mean(axis=2).reshape(8, 8, 8, 8).mean(axis=(1, 3))
        assert np.corrcoef(blocks.ravel(), original.ravel())[0, 1] > 0.97
        assert abs(blocks.mean() - original.mean() * 255 / 16) < 4


def test_a_complete_folder_is_left_alone_and_the_files_are_reproducible(demo: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    assert write_demo(demo) == demo
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before
    (tmp_path / "empty").mkdir()
    again = write_demo(tmp_path / "empty")
    for path in sorted(demo.rglob("*.jpg"))[::50]:
        assert (again / path.relative_to(demo)).read_bytes() == path.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["empty"]  # nothing temporary stays


def test_foreign_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="expected an empty or missing folder") as error:
        write_demo(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_made_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"^[^\n]*expected a folder to write the demo's digits to[^\n]*$"):
        write_demo(tmp_path / "file" / "digits")


def test_missing_scikit_learn_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"deit_fast\[demo\]"):
        write_demo(tmp_path / "digits")
