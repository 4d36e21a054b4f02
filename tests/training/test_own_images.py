"""Own images in one command: classes from the data, a split that is made, kept and scored, a batch that fits."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deit_fast.cli.main import main
from deit_fast.data.sources.image_list import LIST_NAME
from deit_fast.infer.evaluate import evaluate_checkpoint
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import RECIPES, get_recipe
from deit_fast.recipe.table.small_data import ROWS
from deit_fast.runtime.errors import DataError, RecipeError, RunError
from deit_fast.runtime.log_sinks.json_lines import read_metrics
from deit_fast.training.fit_batch import Began, fit_batch
from deit_fast.training.run import train
from tests.image_files import write_tar
from tests.training.test_train import WORDS as DEMO
from tests.training.test_train import command, environment

WORDS = ["model.name=deit3_nano_patch4", "model.image_size=16", "schedule.epochs=2", "schedule.warmup_epochs=1",
         "run.eval_every=1", "run.global_batch=16", "run.precision=fp32", "run.keep_checkpoints=3"]  # fmt: skip


@pytest.fixture(scope="module")
def photos(folder_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three class folders of 12, 9 and 1 images, and no split."""
    root = tmp_path_factory.mktemp("own") / "photos"
    for name, count in (("class0", 12), ("class1", 9), ("class2", 1)):
        (root / name).mkdir(parents=True)
        for file in sorted((folder_data / "train" / name).iterdir())[:count]:
            shutil.copyfile(file, root / name / file.name)
    return root


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("own") / "run"
    train("finetune_small", photos, out, init="none", val=0.2, overrides=WORDS)
    return out


def listed(out: Path) -> list[str]:
    return json.loads((out / LIST_NAME).read_text())["images"]


def every(photos: Path) -> set[str]:
    return {str(path.relative_to(photos)) for path in photos.rglob("*.jpg")}


def place_as_splits(photos: Path, val: list[str], root: Path) -> Path:
    """The same images as train/ and val/, of the classes that each has."""
    for name in every(photos):
        place = root / ("val" if name in val else "train") / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photos / name, place)
    return root


def test_a_split_is_made_and_listed(run: Path, photos: Path) -> None:
    images = listed(run)
    assert set(images) < every(photos)
    assert [name.partition("/")[0] for name in images] == ["class0", "class0", "class1", "class1"]
    recipe = get_recipe(str(run / "recipe.json"))
    assert (recipe.model.num_classes, recipe.data.val_fraction, recipe.data.val_seed) == (3, 0.2, 0)
    records = read_metrics(run / "metrics.jsonl")
    assert [each["step"] for each in records if each["kind"] == "eval"] == [1, 2]  # 18 images, a batch of 16


def test_evaluate_scores_the_listed_images(run: Path, photos: Path, tmp_path: Path) -> None:
    """As the same images do in a folder of their own, whatever the checkpoint is called by."""
    shutil.copyfile(run / "checkpoints" / "last.pt", tmp_path / "alone.pt")
    splits = place_as_splits(photos, listed(run), tmp_path / "splits")
    expected = evaluate_checkpoint(tmp_path / "alone.pt", splits / "val", classes="all")
    for checkpoint in (
        run / "checkpoints" / "last.pt",
        run / "checkpoints" / "last.safetensors",
        tmp_path / "alone.pt",
    ):
        scores = evaluate_checkpoint(checkpoint, photos)
        assert (scores["images"], scores["top1"]) == (4, expected["top1"])
        assert scores["loss"] == pytest.approx(expected["loss"], abs=1e-6)
        assert any(note.startswith("validation images: those that ") for note in scores["notes"])
    for found in (evaluate_checkpoint(run), evaluate_checkpoint(run / "checkpoints", str(run / LIST_NAME))):
        assert found["images"] == 4
    copied = shutil.copytree(photos, tmp_path / "elsewhere" / "photos")
    assert evaluate_checkpoint(run / "checkpoints" / "last.pt", copied)["loss"] == pytest.approx(
        expected["loss"], abs=1e-6
    )
    assert expected["notes"] == []


def test_images_that_were_trained_on_are_never_scored_silently(run: Path, photos: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "alone.pt"
    shutil.copyfile(run / "checkpoints" / "last.pt", checkpoint)
    splits = place_as_splits(photos, listed(run), tmp_path / "splits")
    note = evaluate_checkpoint(checkpoint, splits / "train")["notes"][0]
    assert note == f"{splits}/train: it was trained on these 18 images: no score of new ones"
    shutil.copyfile(photos / listed(run)[0], splits / "train" / listed(run)[0])
    note = evaluate_checkpoint(checkpoint, splits / "train")["notes"][0]
    assert note == f"{splits}/train: it was trained on some of these 19 images, which are all scored"
    train("finetune_small", photos, tmp_path / "all", init="none", val=0, overrides=WORDS)
    assert not (tmp_path / "all" / LIST_NAME).exists()
    assert "it was trained on these 22 images" in evaluate_checkpoint(tmp_path / "all", photos)["notes"][0]
    lost = shutil.copytree(photos, tmp_path / "lost")
    (lost / listed(run)[1]).unlink()
    with pytest.raises(DataError, match=f"expected the 4 validation images that {run} held out: 1 image removed"):
        evaluate_checkpoint(run, lost)


def test_new_images_of_other_photographs_are_all_scored(run: Path, folder_data: Path, tmp_path: Path) -> None:
    """Their names may be those of the images held out."""
    other = shutil.copytree(folder_data / "val", tmp_path / "new")
    scores = evaluate_checkpoint(run, other)
    assert scores["images"] == 33
    assert scores["notes"] == [f"{other} has no validation split: all of its 33 images are scored"]


def test_a_run_that_goes_on_keeps_its_validation_images(run: Path, photos: Path, tmp_path: Path) -> None:
    out, grown = shutil.copytree(run, tmp_path / "run"), shutil.copytree(photos, tmp_path / "photos")
    for number in range(20):
        shutil.copyfile(grown / "class0" / "000.jpg", grown / "class0" / f"new{number}.jpg")
    for step in ("step-0000002", "last", "best"):
        for path in (out / "checkpoints").glob(f"{step}.*"):
            path.unlink()
    words = [*WORDS, "data.may_change=true"]
    with pytest.raises(DataError, match="20 images added"):
        train("finetune_small", grown, out, init="none", val=0.2, overrides=WORDS)
    train("finetune_small", grown, out, val=0.2, overrides=words)
    assert listed(out) == listed(run)
    train("finetune_small", grown, tmp_path / "afresh", init="none", val=0.2, overrides=WORDS)
    assert len(listed(tmp_path / "afresh")) > len(listed(run))


def test_the_list_of_another_run_holds_the_same_images_out(run: Path, photos: Path, tmp_path: Path) -> None:
    grown = shutil.copytree(photos, tmp_path / "photos")
    for number in range(20):
        shutil.copyfile(grown / "class0" / "000.jpg", grown / "class0" / f"new{number}.jpg")
    train("finetune_small", grown, tmp_path / "run", init="none", val=run / LIST_NAME, overrides=WORDS)
    assert listed(tmp_path / "run") == listed(run)
    content = json.loads((tmp_path / "run" / LIST_NAME).read_text())
    assert (content["data"], content["fraction"]) == (str(grown), 0.2)
    (grown / listed(run)[0]).unlink()
    with pytest.raises(DataError, match=f"expected its 4 images in {grown}, 1 are not there, {listed(run)[0]} first"):
        train("finetune_small", grown, tmp_path / "other", init="none", val=run / LIST_NAME, overrides=WORDS)
    with pytest.raises(RunError, match=r"nowhere/val\.json: expected a readable list"):
        train("finetune_small", grown, tmp_path / "other", init="none", val="nowhere/val.json", overrides=WORDS)


def test_a_share_that_is_named_leaves_the_validation_split_alone(folder_data: Path, tmp_path: Path) -> None:
    words = [*WORDS, "schedule.epochs=1", "schedule.warmup_epochs=0"]
    train("finetune_small", folder_data, tmp_path / "own", init="none", overrides=words)
    train("finetune_small", folder_data, tmp_path / "held", init="none", val="0.25", overrides=words)
    assert not (tmp_path / "own" / LIST_NAME).exists()
    assert len(listed(tmp_path / "held")) == 3 * 8
    assert evaluate_checkpoint(tmp_path / "held", folder_data)["images"] == 33
    assert evaluate_checkpoint(tmp_path / "held")["images"] == 24


def test_validation_on_the_training_images_is_said(
    photos: Path, folder_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "schedule.epochs=1", "schedule.warmup_epochs=0"]
    line = "validation images: they are the training images, so that their scores say nothing about new ones"
    train("finetune_small", photos, tmp_path / "same", init="none", val=photos, overrides=words)
    assert line in capfd.readouterr().out
    train("finetune_small", folder_data, tmp_path / "other", init="none", overrides=words)
    assert line not in capfd.readouterr().out


def test_three_images_of_three_classes_train(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for label in range(3):
        (tmp_path / "few" / f"class{label}").mkdir(parents=True)
        shutil.copyfile(photos / "class0" / "000.jpg", tmp_path / "few" / f"class{label}" / "a.jpg")
    result = train("finetune_small", tmp_path / "few", tmp_path / "run", init="none", overrides=WORDS)
    assert result["best_top1"] is None
    assert f"no validation images: no class of {tmp_path}/few has two" in capfd.readouterr().out
    assert evaluate_checkpoint(tmp_path / "run", tmp_path / "few")["images"] == 3
    with pytest.raises(DataError, match=rf"val\.json: lists no images, since no class of {tmp_path}/few had two"):
        evaluate_checkpoint(tmp_path / "run")


def test_several_processes_and_a_resume_train_as_one(photos: Path, tmp_path: Path) -> None:
    """The weights are those of a run on the same images in folders of their own, train/ and val/."""
    photos = shutil.copytree(photos, tmp_path / "photos")
    shutil.rmtree(photos / "class2")  # which has no image for val/
    words = [*WORDS, "model.num_classes=null", "data.val_fraction=0.2", "mix.mixup=0", "mix.cutmix=0",
             "model.drop_path=0", "schedule.epochs=4"]  # fmt: skip
    done = subprocess.run(command(photos, tmp_path / "two", *words, processes=2), env=environment(), text=True,
                          capture_output=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr
    splits = place_as_splits(photos, listed(tmp_path / "two"), tmp_path / "splits")
    train("demo_pretrain", splits, tmp_path / "one", overrides=[*DEMO, *words])
    one, two = (load_file(tmp_path / name / "checkpoints" / "last.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4)


def test_evaluate_reads_the_file_of_labels_that_the_run_was_given(photos: Path, tmp_path: Path) -> None:
    flat, labels = tmp_path / "flat", tmp_path / "mine.csv"
    flat.mkdir()
    for name in every(photos):
        shutil.copyfile(photos / name, flat / name.replace("/", "-"))
    labels.write_text("".join(f"{path.name},{path.name.partition('-')[0]}\n" for path in sorted(flat.iterdir())))
    roundabout = flat / ".." / "flat"
    train("finetune_small", roundabout, tmp_path / "run", init="none", val=0.2, labels=labels, overrides=WORDS)
    found = [evaluate_checkpoint(tmp_path / "run", data, labels=file)
             for data, file in ((None, None), (flat, labels), (flat, None))]  # fmt: skip
    assert [each["images"] for each in found] == [4, 4, 4]
    assert found[0]["loss"] == found[1]["loss"] == found[2]["loss"]


def test_shards_are_parted_too(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = sorted(every(photos), key=lambda name: name.rpartition("/")[2])
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number, name in enumerate(names[shard::2]):
            members[f"{number:03}.jpg"] = (photos / name).read_bytes()
            members[f"{number:03}.cls"] = name[5:6].encode()
        write_tar(root / f"train-{shard}.tar", members)
    train("finetune_small", root, tmp_path / "run", init="none", val=0.2, overrides=WORDS)
    assert all(name.startswith(("train-0.tar:", "train-1.tar:")) for name in listed(tmp_path / "run"))
    assert evaluate_checkpoint(tmp_path / "run", root)["images"] == len(listed(tmp_path / "run")) == 4


def test_an_image_that_cannot_be_decoded_is_not_held_out(photos: Path, run: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(photos, tmp_path / "photos")
    (damaged / listed(run)[0]).write_bytes((photos / listed(run)[0]).read_bytes()[:300])
    train("finetune_small", damaged, tmp_path / "run", init="none", val=0.2, overrides=[*WORDS, "data.max_bad=0.5"])
    assert set(listed(run)[1:]) < set(listed(tmp_path / "run"))
    assert listed(run)[0] not in listed(tmp_path / "run")
    assert len(listed(tmp_path / "run")) == 4


def test_the_command_says_what_is_held_out(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(photos), "--out", str(tmp_path / "run"), *WORDS, "run.global_batch=64"]
    assert main(["train", "finetune_small", "--init", "none", *words]) == 0
    said = capfd.readouterr().out
    assert (
        f"validation images: 2 of the 22 in {photos}, held out of training (data.val_fraction=0.1, val.json lists"
        in said
    )
    assert "1 class has one image, which is trained on" in said
    assert "run.global_batch=64 is more than the 20 views of an epoch: 20 instead; optim.lr=" in said
    assert main(["train", "finetune_small", *words[:2], "--out", str(tmp_path / "other")]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert main(["train", "demo_pretrain", "--init", "none", *words, "--val", "1"]) == 2
    assert "--val 1: expected a share" in capfd.readouterr().err
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "those that" in capfd.readouterr().err


def test_a_batch_is_as_large_as_an_epoch_at_most() -> None:
    recipe = get_recipe("deit3_small_1k_224", ["data.repeats=1"])
    assert fit_batch(recipe, 2048, 8) == (recipe, [])
    for images, processes, passes, expected in ((300, 1, 1, 300), (301, 1, 1, 300), (300, 8, 1, 288), (300, 8, 4, 256)):
        fitted, lines = fit_batch(recipe.derive(run={"accumulation": passes}), images, processes)
        assert (fitted.run.global_batch, len(lines)) == (expected, 1)
        fitted.check_processes(processes)
    assert fit_batch(recipe, 15, 8) == (recipe, [])  # too few for eight processes, which the sampler says


def test_a_fitted_batch_stays_as_the_data_grow(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Else a run on few images would be refused for a batch that nobody gave as soon as there is one image more."""
    grown, out = shutil.copytree(photos, tmp_path / "photos"), tmp_path / "run"
    words = [*WORDS, "run.global_batch=64"]
    train("finetune_small", grown, out, init="none", val=0.2, overrides=words)
    shutil.copyfile(grown / "class0" / "000.jpg", grown / "class0" / "new.jpg")
    for path in [path for name in ("step-0000002", "last", "best") for path in (out / "checkpoints").glob(f"{name}.*")]:
        path.unlink()
    with pytest.raises(DataError, match="1 image added"):
        train("finetune_small", grown, out, val=0.2, overrides=words)
    with pytest.raises(RecipeError, match=r"run\.global_batch=16: expected 18, with which"):
        train("finetune_small", grown, out, val=0.2, overrides=WORDS)
    train("finetune_small", grown, out, val=0.2, overrides=[*words, "data.may_change=true"])
    assert "run.global_batch=18 stays, which the run began with" in capfd.readouterr().out
    recipe = get_recipe("finetune_small", words)
    assert fit_batch(recipe, 30, 1, Began(24, 25, 4))[0].run.global_batch == 24  # of four processes before
    assert fit_batch(recipe, 20, 1, Began(24, 25, 4))[0].run.global_batch == 20  # there are fewer now
    assert fit_batch(recipe, 30, 1, Began(16, 25, 4))[0].run.global_batch == 30  # it was given


def test_the_probe_trains_its_head_alone(photos: Path, run: Path, tmp_path: Path) -> None:
    train("probe", photos, tmp_path / "run", init=run, overrides=WORDS)
    before, after = (load_file(place / "checkpoints" / "last.safetensors") for place in (run, tmp_path / "run"))
    best = load_file(run / "checkpoints" / "best.safetensors")
    assert {name for name in after if not torch.equal(after[name], best[name])} == {"head.weight", "head.bias"}
    assert before.keys() == after.keys()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rows_take_any_classes_and_say_where_they_are_from(row: Recipe) -> None:
    assert RECIPES[row.name] == row
    assert row.model.num_classes is None
    assert row.data.val_fraction == 0.1
    assert "Source: " in row.description
    assert (row.run.start == "weights") == (row.name != "scratch_small")


def test_only_attention_and_head_can_be_trained_alone() -> None:
    def refused(**changes: Any) -> str:
        with pytest.raises(RecipeError) as error:
            get_recipe("probe").derive(**changes)
        return str(error.value)

    assert refused(optim={"trainable": "body"}).startswith(
        "optim.trainable='body': expected 'all', 'attention' or 'head'"
    )
    distilled = {"model": {"name": "deit_small_distilled_patch16", "train_mode": True}, "distill": {"kind": "hard"}}
    assert refused(**distilled).startswith("optim.trainable='head': expected 'all' with distill.kind='hard'")
