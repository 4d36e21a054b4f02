"""Which folders are classes, what is left out, how classes of two splits are told to be the same."""

import os
import unicodedata
from pathlib import Path

import pytest

from deit_fast.cli.main import main
from deit_fast.data.sources.classes import match_classes, read_class_names
from deit_fast.data.sources.open import open_source
from deit_fast.data.tools.check import open_to_check
from deit_fast.runtime.errors import DataError
from tests.image_files import encode, refused, samples, write, write_tar

pytestmark = pytest.mark.usefixtures("cache")

HIDDEN = (".ipynb_checkpoints", ".git", ".Trash-1000", "@eaDir", "__MACOSX", "#recycle", "lost+found", "$RECYCLE.BIN")


def fill(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        for number in range(count):
            write(root / name / f"{number}.jpg", encode(10 + number))
    return root


def check(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    status = main(["data", "check", *map(str, words), "--threads", "1"])
    told = capsys.readouterr()
    return status, told.out + told.err


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_folders_and_files_are_left_out(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, cat=2, dog=3)
    for folder in ("", "cat"):
        write(tmp_path / folder / name / "a.jpg", encode())
    write(tmp_path / "dog" / "._0.jpg", b"AppleDouble")
    source = open_source(str(tmp_path), "train")
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 0, 1, 1, 1]
    status, words = check(capsys, tmp_path)
    assert (status, words.startswith(f"{tmp_path}, train: 5 images of 2 classes")) == (0, True)


def test_hidden_folders_beside_splits_and_shards(tmp_path: Path) -> None:
    for name in HIDDEN:
        write(tmp_path / "folders" / name / "a.jpg", encode())
        write(tmp_path / "folders" / "val" / name / "a.jpg", encode())
    fill(tmp_path / "folders" / "train", cat=2, dog=1)
    fill(tmp_path / "folders" / "val", cat=1, dog=1)
    assert open_source(str(tmp_path / "folders"), "val").classes == ["cat", "dog"]
    write_tar(tmp_path / "shards" / "train-0.tar", samples(0, 3))
    write(tmp_path / "shards" / "._train-0.tar", b"AppleDouble")
    assert len(open_source(str(tmp_path / "shards"), "train")) == 3


@pytest.mark.parametrize("target", [".", "..", "../../images"])
@pytest.mark.parametrize("folder", ["cat", "cat/more"])
def test_a_link_to_a_parent_multiplies_nothing(tmp_path: Path, target: str, folder: str) -> None:
    root = fill(tmp_path / "images", cat=3, dog=2)
    write(root / "cat" / "more" / "a.jpg", encode())
    os.symlink((root / folder / target).resolve() if target.endswith("images") else target, root / folder / "link")
    reached = (root / folder / "link").resolve()
    if reached == root or reached == root.parent:  # dog's images under cat's label
        assert refused(root).startswith(f"{root}/")
        assert "expected images of one class, this folder is reached from class cat too, through a link" in refused(
            root
        )
    else:
        source = open_source(str(root))
        assert source.labels.tolist() == [0, 0, 0, 0, 1, 1]
        assert [source.name(index) for index in range(4)] == [
            str(root / "cat" / name) for name in ("0.jpg", "1.jpg", "2.jpg", "more/a.jpg")
        ]


def test_links_between_classes(tmp_path: Path) -> None:
    root, store = fill(tmp_path / "images", cat=3), fill(tmp_path / "store", dog=2, wolf=1)
    os.symlink(store / "dog", root / "dog")  # a subset of a data set is often made so
    assert open_source(str(root)).labels.tolist() == [0, 0, 0, 1, 1]
    os.symlink(store / "dog", root / "hound")
    assert "is reached from class dog too, through a link" in refused(root)
    (root / "hound").unlink()
    os.symlink(store / "gone", root / "hound")  # a class would be missing
    assert refused(root) == f"{root / 'hound'}: expected a folder of images, found a link to nothing"
    (root / "hound").unlink()
    os.symlink(root / "cat", root / "dog" / "more")
    assert "reached from class" in refused(root)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_one_name_in_two_forms_of_unicode(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["Mz", "Müll", "Straße", "été", "가위"]
    other = "NFD" if form == "NFC" else "NFC"
    for split, kind in (("train", form), ("val", other)):
        for number, name in enumerate(names):
            fill(tmp_path / split, **{unicodedata.normalize(kind, name): 1 + number})
    train, val = open_source(str(tmp_path), "train"), open_source(str(tmp_path), "val")
    match_classes(val, train.classes, "train's classes")
    for source in (train, val):
        for index, label in enumerate(source.labels.tolist()):
            folder = Path(source.name(index)).parent.name
            assert unicodedata.normalize("NFC", folder) == unicodedata.normalize("NFC", train.classes[label])
    assert check(capsys, tmp_path)[0] == 0
    write(tmp_path / "train" / unicodedata.normalize(other, "Müll") / "a.jpg", encode())
    assert "expected every class once, 'Müll' is there in two forms" in refused(tmp_path, "train")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_class_names_in_every_encoding_of_an_editor(tmp_path: Path, encoding: str, end: str) -> None:
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    write(tmp_path / "classes.txt", mark + end.join(["ant", "Müll", "cow", ""]).encode(encoding))
    assert read_class_names(tmp_path / "classes.txt") == ["ant", "Müll", "cow"]
    write_tar(tmp_path / "val.tar", samples(0, 3))
    assert open_source(str(tmp_path / "val.tar")).classes == ["ant", "Müll", "cow"]


def test_the_order_of_names_is_the_trainings(tmp_path: Path) -> None:
    fill(tmp_path / "train", ant=1, bee=1, cow=1)
    write(tmp_path / "shards" / "classes.txt", b"cow\nant\nbee\n")
    source = open_source(str(write_tar(tmp_path / "shards" / "val.tar", samples(0, 3))))
    match_classes(source, open_source(str(tmp_path), "train").classes, "train's classes")
    assert source.classes == ["ant", "bee", "cow"]
    assert source.labels.tolist() == [2, 0, 1]
    write(tmp_path / "shards" / "classes.txt", b"crane\nant\ncrane\n")  # ImageNet has two cranes
    source = open_source(str(tmp_path / "shards" / "val.tar"))
    match_classes(source, ["crane", "ant", "crane"], "train's classes")
    assert source.labels.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="a name that several classes have"):
        match_classes(source, ["crane", "crane", "ant"], "train's classes")


@pytest.mark.parametrize(
    ("val", "told"),
    [
        ({"ant": 1, "cow": 1}, "3 in number, found 2; it lacks 'bee'"),
        ({"ant": 1, "bee": 1, "cow": 1, "dog": 1}, "3 in number, found 4; it has besides 'dog'"),
        ({"ant": 1, "bee": 1, "dog": 1}, "found 'dog' in the place of 'cow'"),
        ({"cow": 1, "dog": 1, "eel": 1}, "found 'cow' in the place of 'ant'; it lacks 'ant', 'bee' and has besides "
                                         "'dog', 'eel'"),
    ],
)  # fmt: skip
def test_check_compares_the_splits(
    tmp_path: Path, val: dict[str, int], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "train", ant=1, bee=2, cow=1)
    fill(tmp_path / "valid", **val)
    status, words = check(capsys, tmp_path, "--out", tmp_path / "bad.txt")
    assert status == 1
    assert f"{tmp_path / 'valid'}: expected {tmp_path}'s classes, {told}\n" in words
    assert (tmp_path / "bad.txt").read_text() == f"{tmp_path / 'valid'}\texpected {tmp_path}'s classes, {told}\n"
    assert main(["data", "shard", str(tmp_path), str(tmp_path / "out"), "--workers", "1"]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_check_compares_the_splits_of_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "train" / "classes.txt", b"a\nb\nc\n")
    write_tar(tmp_path / "train" / "0.tar", samples(0, 3))
    write(tmp_path / "val" / "classes.txt", b"a\nb\nd\n")
    write_tar(tmp_path / "val" / "0.tar", samples(0, 3))
    for uri in (str(tmp_path), f"file://{tmp_path}"):
        status, words = check(capsys, uri)
        assert (status, "found 'd' in the place of 'c'" in words) == (1, True)


@pytest.mark.parametrize("names", [("images", "annotations"), ("Images", "Masks", "labels"), ("jpg", "trimaps")])
def test_masks_and_annotations_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write(tmp_path / name / "deeper" / "a.png", encode(kind="PNG"))
    images = next(name for name in sorted(names) if name.casefold() in ("images", "jpg"))
    assert f"found {images}/ beside " in refused(tmp_path)
    assert refused(tmp_path).endswith(f"; name {tmp_path / images}")
    write(tmp_path / "cat" / "a.jpg", encode())  # beside a class they may be classes themselves
    assert "cat" in open_source(str(tmp_path)).classes


@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_labels_by_name_in_another_form_of_unicode(tmp_path: Path, listed: str) -> None:
    stored = "NFD" if listed == "NFC" else "NFC"
    name, other = unicodedata.normalize(listed, "Müll"), unicodedata.normalize(stored, "Müll")
    classes = f"Rest\n{name}\n".encode()
    content = {"a.jpg": encode(), "a.cls": other.encode(), "b.jpg": encode(), "b.cls": b"Rest"}
    folders = {f"{other}/a.jpg": encode(), "Rest/b.jpg": encode()}
    for number, members in enumerate((content, folders)):
        place = tmp_path / str(number)
        write(place / "classes.txt", classes)
        write_tar(place / "0.tar", members)
        for source in (open_source(str(place)), open_to_check(str(place), "train")):
            assert [len(source.classes), *source.labels.tolist()] == [2, 1, 0]
    write_tar(tmp_path / "two" / "0.tar", folders)
    write_tar(tmp_path / "two" / "1.tar", {f"{name}/a.jpg": encode(), "Rest/b.jpg": encode()})
    assert sorted(open_source(str(tmp_path / "two")).labels.tolist()) == [0, 0, 1, 1]
    for image in (f"{other}1.jpg", "b.jpg", "c.jpg"):
        write(tmp_path / "flat" / image, encode())
    write(tmp_path / "flat.csv", f"{name}1.jpg,{name}\nb.jpg,Rest\nc.jpg,{other}\n".encode())
    flat = open_source(str(tmp_path / "flat"))
    assert {Path(flat.name(n)).stem: len(flat.classes[flat.labels[n]]) for n in range(3)} == {
        f"{other}1": 4, "b": 4, "c": 4,
    }  # fmt: skip
    assert len(flat.classes) == 2
