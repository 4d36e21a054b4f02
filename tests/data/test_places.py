"""A place is chosen from by the same rules wherever it is: on this machine, at a file:// URI, in a bucket."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deit_fast.data.sources.open import find_validation, open_source
from deit_fast.data.sources.place import join_place, split_place
from tests.image_files import encode, refused, samples, write, write_tar

pytestmark = pytest.mark.usefixtures("cache")
Put = Callable[[Path], str]

SHARDS = {
    "a/train-0.tar": 3, "a/train-1.tar": 4, "a/val-0.tar": 5, "a/test-0.tar": 6, "a/._train-0.tar": 1,
    "b/train/0.tar": 3, "b/valid/0.tar": 4, "b/test/0.tar": 5,
    "c/0.tar": 3, "c/2.tar": 4,
    "d/x-[0].tar": 3, "d/x-0.tar": 4,
    "e/p1/train-0.tar": 3, "e/p2/train-0.tar": 4,
    "f/seg_train/0.tar": 3, "f/seg_test/0.tar": 4,
    "g/train/0.tar": 3, "g/val/0.tar": 4, "g/validation/0.tar": 5,
    "h/train/0.tar": 3, "h/test/0.tar": 4,
    "train/0.tar": 3,
}  # fmt: skip
"""Shards by path, and their images."""

FOUND = {
    ("a", "train"): 7, ("a/", "val"): 5, ("a/train-*.tar", None): 7, ("a/train-*", None): 7, ("a/*-0.tar", None): "",
    ("a/train-{0..1}.tar", None): 7, ("a/train-1.tar", None): 4, ("a/._train-0.tar", None): 1,
    ("b", "train"): 3, ("b", "val"): 4, ("b/test", None): 5, ("b/*/0.tar", None): 12,
    ("d/x-[0].tar", None): 3, ("d/x-?.tar", None): 4,
    ("e/*/train-0.tar", None): 7, ("e/p{1..2}/train-0.tar", "train"): 7,
    ("a", None): "ROOT/a: expected one split, found test-*.tar and train-*.tar and val-*.tar; name ",
    ("a/train-{0..2}.tar", None): "ROOT/a/train-{0..2}.tar: expected 3 shards, 1 missing, ROOT/a/train-2.tar first",
    ("c", "train"): "ROOT/c: expected every shard from 0.tar to 2.tar, number 1 is missing",
    ("c/*.tar", None): "ROOT/c: expected every shard from 0.tar to 2.tar, number 1 is missing",
    ("f", "train"): "ROOT/f: expected a folder of images for every class, or train/ and val/; found seg_test/ and ",
    ("g", "val"): "ROOT/g: expected one split, found val/ and validation/; name ROOT/g/val or ROOT/g/validation",
    ("h", "val"): "ROOT/h: expected a validation split (val/, valid/, validation/, eval/, evaluation/), found test/ ",
    ("train", "val"): 3,
}  # fmt: skip
"""What opening a place as a split gives: a number of images, or how the refusal begins."""

VALIDATION = {
    "a": "a/val-*.tar", "a/train-*.tar": "a/val-*.tar", "a/train-{0..1}.tar": "a/val-*.tar", "b": "b/valid",
    "b/train/": "b/valid", "b/test": None, "c": None, "e/*/train-0.tar": None, "a/test-0.tar": None, "h": None,
    "train": None,
}  # fmt: skip


@pytest.fixture(params=["here", "file", "s3"])
def put(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """Puts a folder somewhere and returns its path or URI."""
    if request.param != "s3":
        yield lambda folder: str(folder) if request.param == "here" else f"file://{folder}"
        return
    from tests.object_store import serve

    with serve(monkeypatch) as store:

        def put(folder: Path) -> str:
            for path in folder.rglob("*"):
                if path.is_file():
                    store.put(f"set/{path.relative_to(folder)}", path)
            return "s3://bucket/set"

        yield put


def test_the_same_shards_wherever_they_are(put: Put, tmp_path: Path) -> None:
    for name, count in SHARDS.items():
        write_tar(tmp_path / name, samples(0, count))
    root = put(tmp_path)
    for (uri, split), expected in FOUND.items():
        if isinstance(expected, int):
            assert len(open_source(f"{root}/{uri}", split)) == expected, (uri, split)
        else:
            assert refused(f"{root}/{uri}", split).startswith(expected.replace("ROOT", root)), (uri, split)
    for uri, beside in VALIDATION.items():
        assert find_validation(f"{root}/{uri}") == (beside and f"{root}/{beside}"), uri


def test_what_stands_in_a_store_and_is_no_shard(put: Put, tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat" / "a.jpg", encode())
    write(tmp_path / "train" / "dog" / "a.jpg", encode())
    root = put(tmp_path)
    if root == str(tmp_path):
        assert len(open_source(root, "train")) == 2
        return
    assert refused(root, "train") == (
        f"{root}: expected .tar shards (deit-fast data shard makes them), found none in {root}/train"
    )
    assert "found no such object" in refused(f"{root}/train-0.tar")


@pytest.mark.parametrize(
    ("uri", "folder", "name"),
    [
        ("a/b/train", "a/b", "train"), ("train", "", "train"), ("/train", "/", "train"),
        ("s3://bucket/a/train", "s3://bucket/a", "train"), ("s3://bucket/train/", "s3://bucket", "train"),
        ("s3://train", "s3://train", ""), ("hf://datasets/me/train", "hf://datasets/me/train", ""),
        ("hf://datasets/me/set/train", "hf://datasets/me/set", "train"), ("hf://me/train", "hf://me/train", ""),
        ("file:///data/train", "file:///data", "train"),
    ],
)  # fmt: skip
def test_the_folder_that_a_place_is_in(uri: str, folder: str, name: str) -> None:
    assert split_place(uri) == (folder, name)
    if name:
        assert join_place(folder, name) == uri.rstrip("/")
