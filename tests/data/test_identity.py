"""What tells one data set from another: the same for every copy of it, and in words where something changed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_fast.data.sources.identity import Identity, identify
from deit_fast.data.sources.memory_cache import keep_in_memory
from deit_fast.data.sources.open import open_source
from tests.data.test_cifar import batches, write_binary, write_python
from tests.image_files import encode, samples, write, write_tar

NAMES = [f"{name}/{number:03}.jpg" for name in ("ant", "bee", "Müll") for number in range(20)]


def write_folder(root: Path, names: list[str] = NAMES) -> Path:
    for name in names:
        write(root / name, encode(12 + int(name[-7:-4]), 16))
    return root


def write_shards(root: Path) -> Path:
    for number in range(3):
        write_tar(root / f"train-{number}.tar", samples(8 * number, 8))
    return root


def of(place: Path | str) -> Identity:
    return identify(open_source(str(place), "train"))


def test_it_is_the_same_for_every_copy_of_a_folder(tmp_path: Path) -> None:
    one = write_folder(tmp_path / "one" / "train")
    shuffled = np.random.default_rng(0).permutation(NAMES).tolist()
    write_folder(tmp_path / "elsewhere" / "deep" / "other", shuffled)
    os.symlink(tmp_path / "elsewhere", tmp_path / "link")
    places = [one, tmp_path / "elsewhere" / "deep" / "other", tmp_path / "link" / "deep" / "other", tmp_path / "one"]
    assert len({of(place).digest for place in places}) == 1
    source = open_source(str(one))
    assert identify(keep_in_memory(source, 1)) == identify(source)
    assert Identity.from_plain(identify(source).as_plain()) == identify(source)


def test_and_of_shards_and_of_both_versions_of_cifar(tmp_path: Path) -> None:
    write_shards(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for path in (tmp_path / "two").glob("*.tar"):  # as the cache names what it fetched
        path.rename(path.with_name(f"{path.stem}@0123456789ab.tar"))
    assert of(tmp_path / "one") == of(tmp_path / "two" / "*.tar")
    assert of(write_binary(tmp_path / "binary", 10)) == of(write_python(tmp_path / "python", 10))
    assert batches(10)


def resize(path: Path) -> None:
    with Image.open(path) as image:
        image.resize((90, 90)).save(path)


FOLDER: dict[str, tuple[Callable[[Path], object], str]] = {
    "added": (lambda root: [write(root / f"bee/new{n}.jpg", encode()) for n in range(3)],
              "3 images added, class 'bee' has 23 images, 20 before"),
    "many added": (lambda root: [write(root / f"bee/new{n}.jpg", encode()) for n in range(80)],
                   "80 images added, class 'bee' has 100 images, 20 before"),
    "removed": (lambda root: (root / "ant/007.jpg").unlink(), "1 image removed, class 'ant' has 19 images, 20 before"),
    "renamed": (lambda root: (root / "ant/007.jpg").rename(root / "ant/new.jpg"), "1 image added, 1 image removed"),
    "relabelled": (lambda root: (root / "ant/007.jpg").rename(root / "bee/007b.jpg"),
                   "1 image added, 1 image removed, class 'ant' has 19 images, 20 before, as 1 more"),
    "moved": (lambda root: [(root / "bee/007.jpg").unlink(), (root / "ant/007.jpg").rename(root / "bee/007.jpg")],
              "1 image removed, class 'ant' has 19 images, 20 before"),
    "resized": (lambda root: resize(root / "ant/007.jpg"), "1 image of other content by their sizes or places"),
    "all resized": (lambda root: [resize(path) for path in root.glob("*/*.jpg")],
                    "at least 20 images of other content by their sizes or places"),
    "emptied": (lambda root: (root / "ant/007.jpg").write_bytes(b""), "1 image of other content by their sizes"),
    "a class": (lambda root: write(root / "cow/x.jpg", encode()), "class 'cow' added, 1 image added"),
    "a class renamed": (lambda root: (root / "bee").rename(root / "bees"), "class 'bees' added, class 'bee' removed"),
    "swapped": (lambda root: [(root / "ant").rename(root / "x"), (root / "bee").rename(root / "ant"),
                              (root / "x").rename(root / "bee"), resize(root / "ant/001.jpg")],
                "1 image of other content"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDER)
def test_what_changed_in_a_folder_is_said(tmp_path: Path, kind: str) -> None:
    change, words = FOLDER[kind]
    before = of(write_folder(tmp_path))
    change(tmp_path)
    found = ", ".join(of(tmp_path).changes_from(before))
    assert found.startswith(words), found
    assert of(tmp_path).changes_from(of(tmp_path)) == []


def test_an_image_that_moves_to_another_class_is_relabelled(tmp_path: Path) -> None:
    before = of(write_folder(tmp_path, ["ant/1_000.jpg", "ant/1_001.jpg", "bee/2_000.jpg"]))
    (tmp_path / "ant/1_001.jpg").rename(tmp_path / "bee/1_001.jpg")
    words = "class 'ant' has 1 images, 2 before, as 1 more have other numbers"
    assert of(tmp_path).changes_from(before) == ["1 image relabelled", words]


def test_what_changed_in_shards_is_said(tmp_path: Path) -> None:
    before = of(write_shards(tmp_path))
    first = samples(0, 8)

    def with_first(members: dict[str, bytes]) -> list[str]:
        shutil.rmtree(tmp_path)
        write_shards(tmp_path)
        size = (tmp_path / "train-0.tar").stat().st_size
        write_tar(tmp_path / "train-0.tar", members)
        assert members.keys() != first.keys() or (tmp_path / "train-0.tar").stat().st_size == size
        return of(tmp_path).changes_from(before)

    assert with_first(first) == []
    assert with_first({**first, "s003.cls": b"1\n"})[0] == "1 image relabelled"  # of the same name and size
    assert with_first({**first, "s003.jpg": first["s003.jpg"][:-1]}) == ["1 image of other content by their sizes"]
    fewer = {name: data for name, data in first.items() if not name.startswith("s007")}
    assert with_first(fewer)[0] == "1 image removed"
    with_first(first)
    assert of(tmp_path / "train-{1..2}.tar").changes_from(before)[0] == "8 images removed"
    shards = [tmp_path / f"train-{number}.tar" for number in range(3)]
    shards[0].rename(tmp_path / "x")
    shards[1].rename(shards[0])
    (tmp_path / "x").rename(shards[1])
    assert of(tmp_path).changes_from(before) == ["the same images in another order or in other shards"]


def test_a_pixel_of_cifar_is_seen(tmp_path: Path) -> None:
    root = write_binary(tmp_path, 10)
    before = of(root)
    path = root / "data_batch_3.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert of(root).changes_from(before) == ["1 image of other content by their sizes or places"]
    content[0] = (content[0] + 1) % 10
    path.write_bytes(content)
    assert "1 image relabelled" in of(root).changes_from(before)
