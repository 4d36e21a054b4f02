"""Names, order and number of classes: what is taken, what is refused."""

import json
from pathlib import Path

import pytest

from deit_fast.checkpoint.format import check_same_recipe
from deit_fast.data.sources.classes import check_classes, match_classes, order_classes, resolve_classes
from deit_fast.data.sources.open import open_source
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import DataError, RecipeError
from deit_fast.training.run import train
from tests.image_files import encode, refused, samples, write, write_tar

pytestmark = pytest.mark.usefixtures("cache")


def image_folder(root: Path, classes: list[str]) -> str:
    for name in classes:
        write(root / name / "a.jpg", encode())
    return str(root)


def test_class_names_beside_the_shards(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "train-0.tar", samples(0, 4))
    source = open_source(str(shard))
    assert source.classes == ["0", "1", "2"]
    check_classes(source, 3)
    with pytest.raises(DataError) as error:
        check_classes(source, 1000)
    assert str(error.value) == (
        f"model.num_classes=1000: {shard} has 3 classes; set model.num_classes=3, "
        "or name all of them in classes.txt beside the shards"
    )
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\ndog\n\n")
    source = open_source(str(shard))
    assert source.classes == ["ant", "bee", "cow", "dog"]  # the last has no images
    with pytest.raises(DataError) as error:
        check_classes(source, 1000)
    assert str(error.value) == f"model.num_classes=1000: {shard} has 4 classes; set model.num_classes=4"
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    assert "at least 3 classes, found 2" in refused(shard)
    (tmp_path / "classes.txt").write_text("ant\n\nbee\ncow\n")  # would shift the labels
    assert "line 2 is empty" in refused(shard)
    (tmp_path / "classes.txt").write_text("")
    assert "line 1 is empty" in refused(shard)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([str(n) for n in range(12)], [str(n) for n in range(12)]),  # ImageNet-V2: torchvision would have 10 as class 2
        ([f"{n:03}" for n in range(12)], [f"{n:03}" for n in range(12)]),
        (["1", "2", "10"], ["1", "10", "2"]),  # not 0 to K - 1: names like any other
        (["0", "1", "11"], ["0", "1", "11"]),
        (["b", "10", "9"], ["10", "9", "b"]),
        (["0", "1", "²"], ["0", "1", "²"]),  # a digit to str.isdigit, not to int
        (["0", "00"], ["0", "00"]),
    ],
)
def test_numbers_as_names_are_ordered_by_number(names: list[str], expected: list[str]) -> None:
    assert order_classes(reversed(names)) == expected


def test_imagenet_v2s_folders_match_named_classes_by_index(tmp_path: Path) -> None:
    source = open_source(image_folder(tmp_path / "v2", [str(n) for n in range(12)]))
    assert [Path(source.name(index)).parent.name for index in range(12)] == [str(n) for n in range(12)]
    assert source.labels.tolist() == list(range(12))
    wnids = [f"n{n:08}" for n in range(12)]
    match_classes(source, wnids, "the classes of last.pt")
    named = open_source(image_folder(tmp_path / "named", wnids))
    match_classes(named, source.classes, "the classes of last.pt")
    with pytest.raises(DataError) as error:
        match_classes(source, wnids[:11], "the classes of last.pt")
    assert str(error.value) == f"{tmp_path / 'v2'}: expected the classes of last.pt, 11 in number, found 12"
    with pytest.raises(DataError, match="found 'n00000000' in the place of 'x'"):
        match_classes(named, ["x", *wnids[1:]], "the classes of last.pt")


def test_numbers_in_the_order_of_text_match_by_name(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    source = open_source(image_folder(tmp_path, names))
    match_classes(source, sorted(names), "the classes of a model")  # 0, 1, 10, 11, 2, ...
    assert [sorted(names)[label] for label in source.labels] == names
    assert source.classes == sorted(names)


def test_null_takes_the_datas_count(folder_data: Path) -> None:
    recipe = get_recipe("demo_pretrain", ["model.num_classes=null"])
    source = open_source(str(folder_data), "train")
    resolved = resolve_classes(recipe, source)
    assert resolved == get_recipe("demo_pretrain", ["model.num_classes=3"])
    assert recipe.model.num_classes is None
    assert resolve_classes(resolved, source) is resolved
    with pytest.raises(DataError, match=r"model.num_classes=10: .* has 3 classes; set model.num_classes=3"):
        resolve_classes(get_recipe("demo_pretrain"), source)


def test_a_run_with_null_stores_the_number_and_resumes(folder_data: Path, tmp_path: Path) -> None:
    words = ["model.num_classes=null", "model.image_size=8", "run.global_batch=32", "run.log_every=3"]
    words += ["schedule.epochs=1", "schedule.warmup_epochs=0", "run.checkpoint_every=1"]
    recipe, out = get_recipe("demo_pretrain", words), tmp_path / "run"
    result = train(recipe, str(folder_data), out)
    assert json.loads((out / "recipe.json").read_text())["model"]["num_classes"] == 3
    assert train(recipe, str(folder_data), out) == result  # the checkpoint's recipe is the same
    with pytest.raises(RecipeError, match=r"model.num_classes=None: expected 3"):  # what would be without the number
        check_same_recipe(recipe, resolve_classes(recipe, open_source(str(folder_data), "train")), out)
    with pytest.raises(DataError, match="has 3 classes"):
        train(get_recipe("demo_pretrain", [*words, "model.num_classes=4"]), str(folder_data), out)


def test_validation_with_other_classes_is_refused_before_training(folder_data: Path, tmp_path: Path) -> None:
    recipe, out = get_recipe("demo_pretrain", ["model.num_classes=null"]), tmp_path / "run"
    other = image_folder(tmp_path / "other", ["class0", "class1", "class3"])
    more = image_folder(tmp_path / "more", ["class0", "class1", "class2", "class3"])
    theirs = f"expected {folder_data}'s classes"
    for val, message in (
        (other, f"{other}: {theirs}, found 'class3' in the place of 'class2'"),
        (more, f"{more}: {theirs}, 3 in number, found 4; it has besides 'class3'"),
    ):
        with pytest.raises(DataError) as error:
            train(recipe, str(folder_data), out, val)
        assert str(error.value) == message
    shard = write_tar(tmp_path / "val.tar", {"a.jpg": encode(), "a.cls": b"1"})
    with pytest.raises(DataError, match=r"3 in number, found 2, or name all of them in classes\.txt"):
        train(recipe, str(folder_data), out, str(shard))
    assert not out.exists()
