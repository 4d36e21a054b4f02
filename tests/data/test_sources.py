"""Which data set a name opens, and which validation split belongs to it."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from deit_fast.data.sources.open import find_validation, open_source
from tests.image_files import encode, refused, samples, write, write_tar

pytestmark = pytest.mark.usefixtures("cache")


def test_a_split_is_taken_where_the_folder_has_both(folder_data: Path, tmp_path: Path) -> None:
    assert len(open_source(str(folder_data), "train")) == 96
    assert len(open_source(str(folder_data), "val")) == 33
    assert len(open_source(str(folder_data / "val"), "train")) == 33  # a folder without splits is taken as it is
    assert "train/ and val/" in refused(folder_data)
    write(tmp_path / "train" / "a.jpg", encode())  # a class of trains
    write(tmp_path / "ship" / "a.jpg", encode())
    assert open_source(str(tmp_path), "train").classes == ["ship", "train"]


def test_shards_by_folder_range_glob_and_file(tmp_path: Path) -> None:
    for number in range(12):
        write_tar(tmp_path / f"train-{number:04}.tar", samples(number * 4, 4))
    write_tar(tmp_path / "val-0000.tar", samples(90, 5, "PNG"))
    keys = [f"s{number:03}" for number in range(48)]
    for uri, split in (
        ("", "train"),
        ("train-{0000..0011}.tar", None),
        ("train-{0000..0011}.tar", "val"),
        ("train-*.tar", None),
    ):
        source = open_source(str(tmp_path / uri), split)
        assert [source.name(index)[-8:-4] for index in range(len(source))] == keys, uri
        assert source.labels.tolist() == [number % 3 for number in range(48)]
        assert source.header(30, source.read(30))[:2] == (40, 20)
    assert len(open_source(str(tmp_path), "val")) == 5
    assert len(open_source(str(tmp_path / "train-0003.tar"))) == 4
    assert len(open_source(str(tmp_path / "train-{0003..0004}.tar"))) == 8
    assert "val-*.tar" in refused(tmp_path)
    assert "3 shards, 1 missing" in refused(tmp_path / "train-{0010..0012}.tar")
    assert "train-0012.tar" in refused(tmp_path / "train-{0010..0012}.tar")
    assert "2 shards, 2 missing" in refused(tmp_path / "other-{0..1}.tar")
    assert "counts up, got {3..1}" in refused(tmp_path / "train-{3..1}.tar")
    assert "found nothing" in refused(tmp_path / "other-*.tar")
    (tmp_path / "val-0000.tar").unlink()
    assert "expected val-*.tar, found 12 other shards" in refused(tmp_path, "val")
    (tmp_path / "train-0005.tar").unlink()
    assert "number 5 is missing" in refused(tmp_path, "train")
    assert "number 5 is missing" in refused(tmp_path / "*.tar")


def test_no_torch_is_imported() -> None:
    modules = "deit_fast.data.loader.sampler, deit_fast.data.augment.view_params, deit_fast.data.tools.demo"
    program = f"import sys, {modules}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_validation_is_found_beside_the_training_images(tmp_path: Path) -> None:
    for name in ("both/train/a", "both/val/a", "alone/train/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "shards").mkdir()
    for name in ("train-0000.tar", "train-0001.tar", "val-0000.tar"):
        (tmp_path / "shards" / name).touch()
    for uri in ("both", "both/train", "both/train/"):
        assert find_validation(f"{tmp_path}/{uri}") == f"{tmp_path}/both/val"
    for uri in ("shards", "shards/train-{0000..0001}.tar", "shards/train-*.tar", "shards/train-0001.tar"):
        assert find_validation(f"{tmp_path}/{uri}") == f"{tmp_path}/shards/val-*.tar"
    for uri in ("alone", "alone/train", "absent", "absent/train-0000.tar"):
        assert find_validation(f"{tmp_path}/{uri}") is None


def test_a_lone_training_split_is_not_taken_for_a_class(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "cat"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    assert open_source(str(tmp_path), "train").classes == ["cat"]


def test_a_folder_that_is_two_kinds_of_data_set_is_refused(tmp_path: Path) -> None:
    for name in ("train2018.json", "train.bin", "test.bin", "fine_label_names.txt"):
        (tmp_path / name).touch()
    assert refused(tmp_path, "train") == f"{tmp_path}: expected one kind of data set, found cifar and inaturalist"


def test_a_folders_own_files_say_more_than_its_splits_or_shards(tmp_path: Path) -> None:
    for name in ("train.bin", "test.bin", "train-0000.tar"):
        (tmp_path / name).write_bytes(bytes(2 + 3072))
    (tmp_path / "fine_label_names.txt").write_text("apple\n")
    for split in ("train", "val"):
        write(tmp_path / split / "dog" / "a.jpg", encode())
        assert open_source(str(tmp_path), split).classes == ["apple"]
    assert find_validation(str(tmp_path)) == str(tmp_path)
    (tmp_path / "fine_label_names.txt").unlink()
    assert open_source(str(tmp_path), "val").classes == ["dog"]
    assert find_validation(str(tmp_path)) == str(tmp_path / "val")
