"""Which folder or shards are a split, and that no split becomes a class, whatever it is called."""

from pathlib import Path

import pytest

from deit_fast.cli.main import main
from deit_fast.data.sources.open import find_validation, open_source
from tests.image_files import encode, refused, samples, write, write_tar

pytestmark = pytest.mark.usefixtures("cache")

VALIDATION = ("val", "valid", "validation", "eval", "evaluation", "Val", "VALIDATION")


def image_folder(root: Path, *classes: str) -> Path:
    for name in classes:
        write(root / name / "a.jpg", encode())
    return root


def status_and_words(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    status = main([str(word) for word in words])
    told = capsys.readouterr()
    return status, told.out + told.err


@pytest.mark.parametrize("training", ["train", "training", "Train"])
@pytest.mark.parametrize("validation", VALIDATION)
def test_every_name_of_the_validation_split_is_taken(tmp_path: Path, training: str, validation: str) -> None:
    for split in (training, validation, "test"):
        image_folder(tmp_path / split, "cat", "dog")
    for split, folder in (("train", training), ("val", validation)):
        source = open_source(str(tmp_path), split)
        assert source.classes == ["cat", "dog"]
        assert source.place == str(tmp_path / folder)
        assert source.name(0) == str(tmp_path / folder / "cat" / "a.jpg")
    for uri in (tmp_path, tmp_path / training):
        assert find_validation(str(uri)) == str(tmp_path / validation)
    assert refused(tmp_path).startswith(f"{tmp_path}: expected one split, found ")


@pytest.mark.parametrize("others", [(), ("test",), ("Testing",), ("test", "unlabeled"), ("Annotations",)])
def test_without_a_validation_split_none_is_made_up(
    tmp_path: Path, others: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", *others):
        if split == "Annotations":
            write(tmp_path / split / "cat" / "a.xml", b"<a/>")
        else:
            image_folder(tmp_path / split, "cat", "dog")
    assert open_source(str(tmp_path), "train").classes == ["cat", "dog"]
    assert find_validation(str(tmp_path)) is None
    message = refused(tmp_path, "val")  # and not the training images' score
    assert "expected a validation split (val/, valid/, validation/, eval/, evaluation/), found " in message
    assert f"name {tmp_path}/" in message
    status, words = status_and_words(capsys, "data", "check", tmp_path, "--threads", 1)
    assert (status, "2 images of 2 classes" in words) == (0, True)
    assert status_and_words(capsys, "data", "shard", tmp_path, tmp_path / "out", "--workers", 1)[0] == 0
    assert (tmp_path / "out" / "classes.txt").read_text() == "cat\ndog\n"


@pytest.mark.parametrize(
    "folders",
    [
        ("test",), ("val", "test"), ("training_set", "test_set"), ("seg_train", "seg_test"), ("val2017", "test2017"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val"), ("dev", "holdout"), ("valid",), ("fold1", "fold2"),
        ("trainingSet", "testSet"),
    ],
)  # fmt: skip
def test_splits_are_no_classes(tmp_path: Path, folders: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for split in folders:
        image_folder(tmp_path / split, "cat", "dog")
    message = refused(tmp_path, "train")
    assert f"{sorted(folders)[0]}/" in message
    assert f"{tmp_path}/{sorted(folders)[0]}" in message
    for words in (("check", tmp_path), ("shard", tmp_path, tmp_path / "out")):
        status, told = status_and_words(capsys, "data", *words)
        assert (status, told) == (2, f"deit-fast: {message}\n")


@pytest.mark.parametrize("names", ["cars_{}", "ILSVRC2012_img_{}", "{}A"])
def test_flat_splits_are_no_classes(tmp_path: Path, names: str) -> None:
    training, other = names.format("train"), names.format("test")
    image_folder(tmp_path, other)
    image_folder(tmp_path / training, "cat", "dog")
    assert f"{training}/" in refused(tmp_path, "train")
    assert f"name {tmp_path}/" in refused(tmp_path, "val")


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    image_folder(tmp_path / "a", "ship", "train", "test")  # they hold images, and are not alone
    assert open_source(str(tmp_path / "a"), "train").classes == ["ship", "test", "train"]
    assert open_source(str(tmp_path / "a"), "val").classes == ["ship", "test", "train"]
    image_folder(tmp_path / "b", "ship", "bullet-train/red", "bullet-train/blue")
    assert open_source(str(tmp_path / "b"), "train").classes == ["bullet-train", "ship"]
    image_folder(tmp_path / "c", "ship", "train/steam", "train/diesel")  # one or the other
    assert "found train/, which holds folders as a split does, beside ship/" in refused(tmp_path / "c", "train")
    image_folder(tmp_path / "e", "test_positive", "test_negative")  # of one split
    assert open_source(str(tmp_path / "e"), "train").classes == ["test_negative", "test_positive"]
    image_folder(tmp_path / "d", "train", "test")  # images of no class
    assert f"{tmp_path / 'd' / 'train'}: " in refused(tmp_path / "d", "train")


def test_splits_below_the_classes_are_found(tmp_path: Path) -> None:
    for split in ("train", "val"):
        image_folder(tmp_path / "a" / "imagenette2" / split, "cat", "dog")  # named one folder too high
        image_folder(tmp_path / "b", f"cat/{split}", f"dog/{split}")
    assert refused(tmp_path / "a", "train") == (
        f"{tmp_path / 'a' / 'imagenette2'}: expected images of one class, found splits in it, train/ and val/"
    )
    assert refused(tmp_path / "b").startswith(f"{tmp_path / 'b' / 'cat'}: expected images of one class, found splits")


def test_a_folder_too_high_is_not_one_class(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", "cat", "dog")
    assert refused(tmp_path) == (
        f"{tmp_path}: expected a folder of images for every class, found images/ alone, which holds folders; "
        f"name {tmp_path / 'images'}"
    )


def test_two_validation_splits_are_a_choice(tmp_path: Path) -> None:
    for split in ("train", "val", "validation"):
        image_folder(tmp_path / split, "cat")
    expected = f"expected one split, found val/ and validation/; name {tmp_path}/val or {tmp_path}/validation"
    assert refused(tmp_path, "val") == f"{tmp_path}: {expected}"
    with pytest.raises(ValueError, match="found val/ and validation/"):
        find_validation(str(tmp_path / "train"))


@pytest.mark.parametrize(
    ("train", "val", "glob"),
    [
        ("train-000{}.tar", "validation-0{}.tar", "validation-*.tar"),
        ("imagenet1k-train-000{}.tar", "imagenet1k-validation-0{}.tar", "imagenet1k-validation-*.tar"),
        ("train-0000{}-of-00002.tar", "valid-0000{}-of-00002.tar", "valid-*.tar"),
        ("training_{}.tar", "eval_{}.tar", "eval_*.tar"),
    ],
)
def test_shards_of_every_name(tmp_path: Path, train: str, val: str, glob: str) -> None:
    for number in range(2):
        write_tar(tmp_path / train.format(number), samples(3 * number, 3))
        write_tar(tmp_path / val.format(number), samples(20 * number, 4))
        write_tar(tmp_path / f"test-{number}.tar", samples(40 * number, 5))
    assert (len(open_source(str(tmp_path), "train")), len(open_source(str(tmp_path), "val"))) == (6, 8)
    for uri in (tmp_path, tmp_path / train.format(0), tmp_path / train.format("*"), tmp_path / train.format("{0..1}")):
        assert find_validation(str(uri)) == str(tmp_path / glob)
    for mixed in ("", "*.tar"):
        assert "expected one split, found" in refused(tmp_path / mixed)
    for path in tmp_path.glob(glob):
        path.unlink()
    assert find_validation(str(tmp_path)) is None
    message = refused(tmp_path, "val")
    assert "expected val-*.tar, found 4 other shards" in message
    assert f"{tmp_path}/test-*.tar" in message


def test_folders_of_shards_without_the_splits_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "000.tar", samples(0, 3))
    write_tar(tmp_path / "validation" / "000.tar", samples(3, 4))
    val = find_validation(str(tmp_path))
    assert val == str(tmp_path / "validation")
    assert len(open_source(val, "val")) == len(open_source(str(tmp_path), "val")) == 4
    assert len(open_source(str(tmp_path / "train"), "train")) == 3
