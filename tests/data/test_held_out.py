"""Images held out where there is no validation split: which ones, on what that depends, and as a data set."""

import copy
import json
import os
import shutil
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.held_out import all_but, choose_held_out, find_listed
from deit_fast.data.sources.identity import identify
from deit_fast.data.sources.image_list import LIST_NAME, ImageList
from deit_fast.data.sources.open import find_validation, open_source
from deit_fast.data.sources.subset import Subset
from deit_fast.recipe.parse import read_val_fraction
from deit_fast.runtime.errors import DataError, RecipeError
from tests.data.test_cifar import write_binary, write_python
from tests.image_files import encode, write, write_tar

SIZES = {"ant": 1, "bee": 2, "cat": 7, "dog": 40}


def make(root: Path, sizes: dict[str, int] = SIZES, order: int = 1) -> Path:
    for name in sorted(sizes)[::order]:
        for number in range(sizes[name])[::order]:
            write(root / name / f"{number:03}.jpg", encode(10 + number, 20 + len(name)))
    return root


def names(source: Source, images: np.ndarray) -> set[str]:
    listed = source.listed_names()
    return {listed[index] for index in images.tolist()}


def held(place: Path | str, fraction: float = 0.1, seed: int = 0) -> set[str]:
    source = open_source(str(place), "train")
    return names(source, choose_held_out(source, fraction, seed))


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.1, (0, 1, 1, 4)), (0.5, (0, 1, 4, 20)), (0.01, (0, 1, 1, 1)), (0.99, (0, 1, 6, 39))],
)
def test_every_class_gives_its_share_and_keeps_an_image(
    fraction: float, expected: tuple[int, ...], tmp_path: Path
) -> None:
    counts = Counter(name.partition("/")[0] for name in held(make(tmp_path), fraction))
    assert tuple(counts[name] for name in SIZES) == expected


def test_the_choice_depends_on_names_and_seed_alone(tmp_path: Path) -> None:
    first = held(make(tmp_path / "a"))
    assert held(make(tmp_path / "b", order=-1)) == first
    assert held(make(tmp_path / "c"), seed=1) != first
    assert first <= held(tmp_path / "a", 0.3) < held(tmp_path / "a", 0.6)
    (tmp_path / "c" / "cow").mkdir()
    shutil.copyfile(tmp_path / "c" / "dog" / "000.jpg", tmp_path / "c" / "cow" / "000.jpg")
    assert held(tmp_path / "c") == first


def test_the_choice_looks_random(tmp_path: Path) -> None:
    """Over many seeds each of 40 images is held out as often as any other: 100 of 1,000 times, by 6 deviations."""
    source = open_source(str(make(tmp_path, {"dog": 40, "eel": 2})))
    counts = sum(np.bincount(choose_held_out(source, 0.1, seed), minlength=42) for seed in range(1000))
    assert counts[:40].sum() == 4000
    assert abs(counts[:40] - 100).max() < 6 * np.sqrt(1000 * 0.1 * 0.9)


def test_forms_of_unicode_are_one_name(tmp_path: Path) -> None:
    composed = {f"é{number}": 12 for number in range(3)}
    make(tmp_path / "linux", composed)
    make(tmp_path / "mac", {unicodedata.normalize("NFD", name): count for name, count in composed.items()})
    chosen = held(tmp_path / "mac")
    assert {unicodedata.normalize("NFC", name) for name in chosen} == held(tmp_path / "linux")
    assert find_listed(open_source(str(tmp_path / "linux")), sorted(chosen))[1] == []


def test_both_versions_of_cifar_hold_out_the_same(tmp_path: Path) -> None:
    binary, pickled = write_binary(tmp_path / "binary", 10), write_python(tmp_path / "python", 10)
    assert held(binary, 0.3) == held(pickled, 0.3)


def shards(folder: Path) -> Path:
    folder.mkdir()
    for shard in range(3):
        members = {}
        for number in range(10 * shard, 10 * shard + 10):
            members |= {f"s{number:03}.jpg": encode(10 + number, 20), f"s{number:03}.cls": b"%d" % (number % 3)}
        write_tar(folder / f"train-{shard}.tar", members)
    return folder


def test_parts_of_shards_have_what_tarfile_reads(tmp_path: Path) -> None:
    stored = {}
    for shard in range(3):
        with tarfile.open(shards(tmp_path / "set") / f"train-{shard}.tar" if not shard else
                          tmp_path / "set" / f"train-{shard}.tar") as archive:  # fmt: skip
            images = [member for member in archive.getmembers() if member.name.endswith(".jpg")]
            for number, member in enumerate(images):
                label = archive.extractfile(member.name.replace("jpg", "cls")).read()  # type: ignore[union-attr]
                content = archive.extractfile(member).read()  # type: ignore[union-attr]
                stored[f"train-{shard}.tar:{number}"] = (content, int(label))
    source = open_source(str(tmp_path / "set"), "train")
    images = choose_held_out(source, 0.3, 0)
    seen = {}
    for kept in (images, all_but(source, images)):
        part = Subset(copy.copy(source), kept)
        assert part.shard_edges is not None
        for shard, (start, stop) in enumerate(zip(part.shard_edges, part.shard_edges[1:], strict=False)):
            assert all(part.stored_in(index).endswith(f"train-{shard}.tar") for index in range(start, stop))
        listed = part.listed_names()
        seen |= {listed[index]: (part.read(index).tobytes(), int(part.labels[index])) for index in range(len(part))}
    assert seen == stored
    assert Counter(stored[name][1] for name in names(source, images)) == {0: 3, 1: 3, 2: 3}


def test_a_subset_is_another_data_set_once_its_images_are(tmp_path: Path) -> None:
    """Of a folder and of shards, whose indexes know images by sizes."""
    shards(tmp_path / "set")
    make(tmp_path / "folder")
    for place in ("set", "folder"):
        source = open_source(str(tmp_path / place), "train")
        images = choose_held_out(source, 0.3, 0)
        one, other = (identify(Subset(source, kept)) for kept in (images, all_but(source, images)))
        assert sum(one.class_sizes) == len(images)
        assert sum(one.class_sizes) + sum(other.class_sizes) == len(source)
        assert identify(Subset(copy.copy(source), images)).digest == one.digest != other.digest
        assert identify(Subset(source, images[1:])).digest != one.digest
        assert one.shares(one) == 1
    assert one.shares(other) == 0  # of the folder, whose images have names
    before = identify(Subset(source, images))
    (tmp_path / "folder" / source.listed_names()[int(images[0])]).write_bytes(encode(77, 20))
    again = open_source(str(tmp_path / "folder"), "train")
    assert identify(Subset(again, images)).changes_from(before) == ["1 image of other content by their sizes or places"]


def test_a_list_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(make(tmp_path / "photos")))
    images = choose_held_out(source, 0.1, 0)
    listed = [source.listed_names()[index] for index in images.tolist()]
    content = ImageList(str(tmp_path / "photos"), None, "name", 0.1, 0, listed)
    write(tmp_path / "run" / LIST_NAME, content.as_text().encode())
    place = str(tmp_path / "run" / LIST_NAME)
    assert ImageList.read(place) == content
    found = open_source(place, "val")
    assert [os.path.relpath(found.name(index), tmp_path / "photos") for index in range(len(found))] == listed
    assert [found.classes[label] for label in found.labels] == [name.partition("/")[0] for name in listed]
    assert find_validation(place) is None
    monkeypatch.chdir(tmp_path / "run")
    assert len(open_source(LIST_NAME)) == len(listed)
    (tmp_path / "photos" / listed[0]).unlink()
    with pytest.raises(
        DataError, match=f"val.json: expected its {len(listed)} images in .*, 1 are not there, {listed[0]}"
    ):
        open_source(place)
    for damaged in (b"", b"[]", b'{"data": 1}', content.as_text().encode().replace(b"0.1", b'"a"'), b"\xff\xfe"):
        write(tmp_path / "run" / LIST_NAME, damaged)
        with pytest.raises(DataError, match="expected a list of images as a run writes it") as refusal:
            open_source(place)
        assert "\n" not in str(refusal.value)
    plain = json.loads(content.as_text())
    for key, value in (("labels", 3), ("images", [3]), ("images", None), ("fraction", 0.0), ("fraction", 2.0)):
        write(tmp_path / "run" / LIST_NAME, json.dumps(plain | {key: value}).encode())
        with pytest.raises(DataError, match="expected a list of images as a run writes it"):
            open_source(place)
    write(tmp_path / "run" / LIST_NAME, json.dumps(plain | {"images": []}).encode())
    with pytest.raises(DataError, match=r"val\.json: lists no images, since no class of .*/photos had two"):
        open_source(place)
    (tmp_path / "photos").rename(tmp_path / "moved")
    write(tmp_path / "run" / LIST_NAME, content.as_text().encode())
    with pytest.raises(DataError, match=f"nothing there; {place} names that place, and --data names another"):
        open_source(place)
    with pytest.raises(DataError, match="No such file"):
        open_source(str(tmp_path / "nowhere" / LIST_NAME))


def test_what_val_says() -> None:
    assert [read_val_fraction(word) for word in ("0", "0.1", 0.25, ".5", "1e-2")] == [0, 0.1, 0.25, 0.5, 0.01]
    assert [read_val_fraction(word) for word in ("photos", "./0.1", "/data/10", "val-{0..3}.tar")] == [None] * 4
    for word in ("1", "10", "-0.1", "nan", "inf", "10%"):
        with pytest.raises(RecipeError, match=f"--val {word}: expected a share from 0 to below 1"):
            read_val_fraction(word)
