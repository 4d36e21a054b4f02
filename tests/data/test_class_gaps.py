"""Data without some of the classes, as from an incomplete copy: what is missing is named, and no label shifts."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from deit_fast.cli.main import main
from deit_fast.data.sources.class_gaps import describe_gaps, lacking
from deit_fast.data.sources.class_subset import choose_classes
from deit_fast.data.sources.classes import check_classes, match_classes
from deit_fast.data.sources.open import open_source
from deit_fast.runtime.errors import DataError
from deit_fast.zoo.class_names import imagenet_classes
from tests.data.test_classes import image_folder
from tests.image_files import encode, write_tar

TEN = [str(number) for number in range(10)]
HOLE = [name for name in TEN if name != "2"]
WNIDS = list(imagenet_classes())


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (TEN, ""), (["1", "2", "3"], ""), (["ant", "bee"], ""), (["3", "400", "5000"], ""),  # ids, from 1 on, names
        (HOLE, "numbered classes, without '2': so a class is not its number, but its place in the order of text; "),
        (["1", "2", "4", "10", "5", "9", "8"], "without '3', '6', '7': so"),
        (["00", "01", "03"], "without '2': so"),
    ],
)  # fmt: skip
def test_gaps_between_numbers(names: list[str], says: str, tmp_path: Path) -> None:
    lines = describe_gaps(open_source(image_folder(tmp_path, names)))
    assert len(lines) == bool(says)
    assert all(line.startswith(f"{tmp_path}: ") and says in line and "\n" not in line for line in lines)


def test_a_part_of_imagenet(tmp_path: Path) -> None:
    """Most of it is a copy that is incomplete, a hundredth of it is chosen."""
    source = open_source(image_folder(tmp_path, ["a"]))
    for names, count in ((WNIDS[:2] + WNIDS[3:], 1), (WNIDS, 0), (WNIDS[:10], 0), (WNIDS[:100], 0), (["n1", "n2"], 0)):
        source.classes, source.labels = names, np.arange(len(names))
        lines = describe_gaps(source)
        assert len(lines) == count
        assert all(f"has 999 of ImageNet's 1,000 classes, without '{WNIDS[2]}'" in line for line in lines)
    assert lacking(WNIDS[:-2], 1000) == WNIDS[-2:]
    assert lacking(["ant"], 1000) == lacking([*HOLE, "77"], 10) == lacking(TEN, 10) == []


def test_shards_without_a_class(tmp_path: Path) -> None:
    content = {
        f"{number}.{end}": data for number in (0, 1, 3) for end, data in (("jpg", encode()), ("cls", b"%d" % number))
    }
    source = open_source(str(write_tar(tmp_path / "train.tar", content)))
    assert describe_gaps(source) == [f"{source.place}: no images of 1 of its 4 classes: '2'"]


def test_too_few_classes_for_the_recipe(tmp_path: Path) -> None:
    place = image_folder(tmp_path, HOLE)
    with pytest.raises(DataError) as error:
        check_classes(open_source(place), 10)
    assert str(error.value) == (f"model.num_classes=10: {place} has 9 classes, without '2': restore these if they were "
                                "lost; set model.num_classes=9")  # fmt: skip
    with pytest.raises(DataError, match=r"has 9 classes; set model\.num_classes=9"):
        check_classes(open_source(place), 7)


@pytest.mark.parametrize(
    "model", [TEN, sorted(TEN), [f"class {name}" for name in TEN]], ids=["numbers", "text", "names"]
)
@pytest.mark.parametrize("names", [HOLE, TEN[:-1], [*TEN[:4], *TEN[5:]]])
def test_numbered_data_with_some_of_the_models_classes(names: list[str], model: list[str], tmp_path: Path) -> None:
    """The number of a folder is the model's class, or its name where the model has numbers in another order."""
    place = image_folder(tmp_path, names)
    (absent,) = set(TEN) - set(names)
    with pytest.raises(DataError) as error:
        choose_classes(open_source(place), model, None, "last.pt")
    assert f"{place}: has 9 of the 10 classes of last.pt, without '{absent}'; restore these if" in str(error.value)
    expected = [model.index(name) if name in model else int(name) for name in names]
    among, whole = open_source(place), open_source(place)
    columns = choose_classes(among, model, "data", "last.pt")
    assert columns is not None
    assert columns[among.labels].tolist() == expected
    assert choose_classes(whole, model, "all", "last.pt") is None
    assert (whole.labels.tolist(), whole.classes) == (expected, model)


def test_a_hole_does_not_shift_the_labels(tmp_path: Path) -> None:
    """Ten numbers of which one is another: as many as the model has, and in another order as text."""
    source = open_source(image_folder(tmp_path, [*HOLE, "10"]))
    for match in (lambda: match_classes(source, TEN, "train's classes"),
                  lambda: choose_classes(source, TEN, None, "train")):  # fmt: skip
        with pytest.raises(DataError, match=r"expected .*, found '10' in the place of '2'$"):
            match()
    with pytest.raises(DataError, match="10 in number, found 9; it lacks '2'"):
        match_classes(open_source(image_folder(tmp_path / "val", HOLE)), TEN, "train's classes")
    padded = open_source(image_folder(tmp_path / "padded", [f"{number:02}" for number in range(10)]))
    match_classes(padded, sorted(TEN, reverse=True), "train's classes")
    assert padded.labels.tolist() == list(range(9, -1, -1))


def test_the_commands(folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    for split in ("train", "val"):
        for label in range(3):
            shutil.copytree(folder_data / split / f"class{label}", whole / split / str(label))
    shutil.copytree(whole, part, ignore=lambda _, names: {"1"} & set(names))
    words = ["demo_pretrain", "model.num_classes=null", "model.image_size=8", "run.global_batch=16", "run.trackers=[]",
             "schedule.epochs=1", "schedule.warmup_epochs=0", "run.compile=off"]  # fmt: skip
    run = tmp_path / "run"
    assert main(["train", *words, "--data", str(whole), "--out", str(run)]) == 0
    assert "without" not in capsys.readouterr().out
    assert main(["evaluate", str(run), "--data", str(part)]) == 2
    assert f"part: has 2 of the 3 classes of {run}, without '1'; restore" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--data", str(part), "--classes", "all"]) == 0
    assert main(["train", *words, "--data", str(part), "--out", str(tmp_path / "other")]) == 0
    assert f"{part}/train: numbered classes, without '1': so " in capsys.readouterr().out
    assert main(["data", "check", str(part)]) == 0
    assert len(re.findall("numbered classes, without '1': so", capsys.readouterr().out)) == 2
