"""A made-up run that follows, leads or lags the published curve of its recipe."""

import dataclasses
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from deit_fast.infer.pages import on_track
from deit_fast.infer.pages.compare import write_comparison
from deit_fast.infer.pages.on_track import published_curve, standing, standings_of
from deit_fast.infer.pages.report import write_run_page
from deit_fast.infer.pages.run_folder import RunFolder, read_run
from deit_fast.recipe.table import RECIPES, get_recipe
from deit_fast.training.run import train

NAME = "deit3_small_1k_224"
SHARED = {50: 53.628, 400: 74.446, 800: 81.376}
"""Three points of the authors' log of S at 800 epochs."""


def made_run(
    folder: Path, shift: float = 0.0, epochs: range = range(1, 401, 20), words: tuple[str, ...] = ()
) -> RunFolder:
    recipe = get_recipe(NAME, words)
    folder.mkdir(exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json")))
    fact = published_curve(get_recipe(NAME))
    assert fact is not None
    known, values = np.array(fact.points).T
    lines = []
    for epoch in epochs:
        top1 = float(np.interp(epoch, known, values)) + shift
        lines.append({"kind": "train", "step": epoch * 625, "epoch": epoch, "loss": 1.0, "images_per_second": 900.0})
        lines.append({"kind": "eval", "step": epoch * 625, "top1": top1, "ema_top1": top1 + 40, "loss": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_run(folder)


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "on track"), (0.2, "on track"), (3.0, "ahead"), (-3.0, "behind")])
def test_a_run_that_follows_leads_or_lags(shift: float, verdict: str, tmp_path: Path) -> None:
    found = standings_of(made_run(tmp_path / "run", shift, range(101, 401, 20)))
    assert {each.verdict for each in found} == {verdict}


@pytest.mark.parametrize("epoch", SHARED)
def test_the_published_value_is_that_of_the_log(epoch: int) -> None:
    found = standing(get_recipe(NAME), epoch, SHARED[epoch])
    assert found is not None
    assert (found.published, found.verdict) == (pytest.approx(SHARED[epoch]), "on track")
    assert str(found) == f"epoch {epoch}: {SHARED[epoch]:.1f} % published, {SHARED[epoch]:.1f} % here, on track"


def test_one_epoch_either_way_is_allowed() -> None:
    """Early on a single epoch is worth several points: the log's index may be one off."""
    recipe = get_recipe(NAME)
    for epoch in (6, 10, 20):
        for off in (-1, 1):
            shifted = np.interp(epoch + off, *np.array(published_curve(recipe).points).T)  # type: ignore[union-attr]
            found = standing(recipe, epoch, float(shifted))
            assert found is not None
            assert found.verdict == "on track"


@pytest.mark.parametrize("word", ["schedule.epochs=400", "model.image_size=192", "model.name=deit3_tiny_patch16"])
def test_another_schedule_or_model_has_no_curve(word: str) -> None:
    words = [word, "mix.cutmix=1"] if "name" in word else [word]
    assert published_curve(get_recipe(NAME, words)) is None
    assert standing(get_recipe(NAME, words), 50, 50.0) is None


@pytest.mark.parametrize("classes", [3, 100, 999, 1001, 21841])
def test_own_images_have_no_published_curve(classes: int, tmp_path: Path) -> None:
    """A run's recipe has the number of its data's classes: 95 % on three classes is not ahead of ImageNet's log."""
    words = (f"model.num_classes={classes}",)
    assert standings_of(made_run(tmp_path / "run", words=words)) == []
    assert standings_of(made_run(tmp_path / "imagenet", words=("model.num_classes=1000",)))
    larger = published_curve(get_recipe("deit3_base_21k_224", words))
    assert (larger is not None) == (classes == 21841)


def test_no_number_has_no_standing() -> None:
    assert standing(get_recipe(NAME), 50, float("nan")) is None
    assert standing(get_recipe(NAME), 50, None) is None


def test_each_published_curve_of_a_comparison_is_at_its_own_run_s_steps(tmp_path: Path) -> None:
    """The first run has no curve and an epoch of other steps; the others have two different curves."""
    first = made_run(tmp_path / "first", words=("schedule.epochs=400",))
    records = [{"kind": "train", "step": 10, "epoch": 1.0, "loss": 1.0}, {"kind": "eval", "step": 10, "top1": 1.0}]
    (first.path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    small, again, base = (made_run(tmp_path / name) for name in ("small", "again", "base"))
    other = get_recipe("deit3_base_1k_192")
    (base.path / "recipe.json").write_text(json.dumps(other.model_dump(mode="json")))
    runs = [read_run(each.path) for each in (first, small, base, again)]
    text = write_comparison(runs, [None] * 4, tmp_path / "compare.html").read_text()
    charts = [json.loads(html.unescape(each))["series"] for each in re.findall(r'data-chart="([^"]*)"', text)]
    drawn = [each for series in charts for each in series if each["color"] == "published"]
    assert len(drawn) == 2  # each once, under the accuracy
    lines = {each["name"]: each["points"] for each in drawn}
    assert lines.keys() == {f"published top-1 {NAME}", "published top-1 deit3_base_1k_192"}
    assert [50 * 625, 50, 53.628] in lines[f"published top-1 {NAME}"]


def test_what_a_comparison_is_for_may_differ() -> None:
    assert published_curve(get_recipe(NAME, ["optim.lr=1e-3", "run.global_batch=1024"])) is not None


def test_the_page_says_it(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", -3.0, range(101, 401, 20))
    text = write_run_page(run).read_text()
    assert "Beside the published run" in text
    assert "behind by 3.0 points" in text
    assert "published top-1" in text  # the line below the accuracy
    other = made_run(tmp_path / "other", words=("schedule.epochs=400",))
    assert "Beside the published run" not in write_run_page(other).read_text()


def test_a_comparison_says_it(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / name, shift, range(101, 401, 20)) for name, shift in (("ahead", 3.0), ("behind", -3.0))]
    text = write_comparison(runs, [None, None], tmp_path / "compare.html").read_text()
    rows = re.findall(r"<td>(ahead|behind)</td><td>(epoch [^<]*)</td>", text)
    assert [(name, words.rpartition(", ")[2]) for name, words in rows] == [
        ("ahead", "ahead by 3.0 points"),
        ("behind", "behind by 3.0 points"),
    ]
    assert text.count("published top-1") == 1  # a line under the accuracy of both


def test_a_run_says_it_at_each_evaluation(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a recipe whose made-up curve is far below what chance gives, and jumps at the end."""
    words = ["model.num_classes=3", "run.global_batch=8", "schedule.epochs=3", "schedule.warmup_epochs=1",
             "run.eval_every=1"]  # fmt: skip
    recipe = get_recipe("demo_pretrain", words)
    fact = dataclasses.replace(published_curve(get_recipe(NAME)), points=((1, 0.0), (2, 0.0), (3, 100.0)))  # type: ignore[type-var]
    monkeypatch.setitem(RECIPES, "demo_pretrain", recipe)
    monkeypatch.setattr(on_track, "find_curve", lambda name: fact if name == "demo_pretrain" else None)
    monkeypatch.setattr(on_track, "_scatter", lambda fact: 0.0)
    train(recipe, folder_data, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    said = [place for place, line in enumerate(lines) if "% published" in line]
    assert all("top-1" in lines[place - 1] for place in said)
    assert [lines[place].split(":")[0] for place in said] == ["epoch 1", "epoch 2", "epoch 3"]
    assert "0.0 % published" in lines[said[0]]
    assert "ahead by" in lines[said[0]]
    assert lines[said[1]].endswith("on track")  # an epoch later the curve is at 100
    assert "100.0 % published" in lines[said[2]]
