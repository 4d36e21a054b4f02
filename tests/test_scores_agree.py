"""Every number that two commands, or two files of one command, give is the same number, on any logits.

The oracle is numpy: a class's place is how many logits are larger, and how many equal ones have a smaller label.
"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax
from scipy.stats import binomtest

from deit_fast.checkpoint.format import save_checkpoint
from deit_fast.cli.main import main
from deit_fast.data.loader.batches import Batch
from deit_fast.data.sources.base import Source
from deit_fast.infer import evaluate as evaluation
from deit_fast.infer.metrics import find_metrics
from deit_fast.infer.outcomes import outcome_rows, read_outcomes
from deit_fast.infer.ranking import rank_classes
from deit_fast.infer.report import write_report
from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.world import World

CPU = World(0, 1, torch.device("cpu"))
IMAGES = 400


def places(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each label, from 0 on; logits [N, K]."""
    own = logits[np.arange(len(labels)), labels][:, None]
    smaller = np.arange(logits.shape[1]) < labels[:, None]
    return (logits > own).sum(1) + ((logits == own) & smaller).sum(1)


def made(kind: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits [400, K] of a kind, and labels."""
    rng = np.random.default_rng(0)
    classes = {"one class": 1, "two classes": 2, "two classes, tied": 2, "many": 1000}.get(kind, 10)
    logits = rng.normal(size=(IMAGES, classes)).astype(np.float32)
    labels = rng.integers(classes, size=IMAGES)
    if kind == "all equal":
        logits[:] = 0.25
    elif kind == "some equal":
        logits = np.round(logits)
    elif kind == "signs of zero":
        logits = np.where(rng.random(logits.shape) < 0.5, np.float32(-0.0), np.float32(0.0))
    elif kind == "two classes, tied":
        logits[::2, 1] = logits[::2, 0]
    elif kind == "many":  # as after a pass in bf16, of a model that is often right
        labels[::2] = logits[::2].argmax(1)
        logits = torch.from_numpy(logits).bfloat16().float().numpy()
    elif kind == "equal probabilities":  # whose logits differ: exp of them is 0 in fp32
        logits -= np.float32(300)
        logits[:, 3] = 0
    return logits, labels


class Numbered(Source):
    """A source of labels alone."""

    def read(self, index: int) -> NDArray[np.uint8]:
        raise NotImplementedError

    def name(self, index: int) -> str:
        return f"image {index}.jpg"


def scored(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> evaluation.Scores:
    """In batches of 150, the last with padding that would count if it could."""
    given = torch.from_numpy(logits)
    batches = []
    for start in range(0, IMAGES, 150):
        indices = np.arange(start, start + 150) % IMAGES
        valid = min(150, IMAGES - start)
        batches.append(Batch(torch.from_numpy(indices), torch.from_numpy(labels[indices]), indices, None, 0, 0, valid))
    metrics = {**find_metrics(), "outcomes": outcome_rows(IMAGES)}
    return evaluation.evaluate(lambda images: given[images], batches, CPU, metrics=metrics)  # type: ignore[arg-type]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


KINDS = ["distinct", "all equal", "some equal", "signs of zero", "one class", "two classes", "two classes, tied",
         "many", "equal probabilities"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_outcomes_report_and_ranking_say_the_same(kind: str, tmp_path: Path) -> None:
    logits, labels = made(kind)
    classes = logits.shape[1]
    scores = scored(logits, labels)
    values, outcomes = scores.values, read_outcomes(scores.totals["outcomes"])
    found = places(logits, labels)
    hits1, hits5 = int((found < 1).sum()), int((found < 5).sum())
    assert values["top1"] == 100 * hits1 / IMAGES <= values["top5"] == 100 * hits5 / IMAGES
    assert (outcomes.predictions == labels).sum() == hits1
    assert np.array_equal(outcomes.predictions == labels, found == 0)
    assert np.array_equal(outcomes.in_top5, found < 5)
    assert outcomes.confidences == pytest.approx(softmax(logits.astype(float), axis=1).max(1), rel=1e-5)
    ranked = rank_classes(torch.from_numpy(logits), 5).numpy()
    assert ranked.shape == (IMAGES, min(5, classes))
    assert np.array_equal(ranked[:, 0], outcomes.predictions)
    assert np.array_equal((ranked == labels[:, None]).any(1), outcomes.in_top5)
    assert np.array_equal(ranked, np.argsort(-logits.astype(float), axis=1, kind="stable")[:, :5])

    own = logits[np.arange(IMAGES), labels][:, None]
    above, level = (logits > own).sum(1), (logits == own).sum(1)
    decided = [(above < count) & (above + level > count) for count in (1, 5)]
    assert values.get("ties", 0) == 100 * (decided[0] | decided[1]).sum() / IMAGES
    assert ("ties" in values) == (kind not in ("distinct", "one class", "two classes", "equal probabilities"))

    source = Numbered("made", [f"class {label}" for label in range(classes)], labels)
    write_report(tmp_path, source, outcomes, {**values, "odd": float("nan")})
    per_class = rows_of(tmp_path / "per_class.csv")
    assert sum(int(row["images"]) for row in per_class) == IMAGES
    for key, hits in (("top1", hits1), ("top5", hits5)):
        shares = [round(float(row[key] or 0) * int(row["images"]) / 100) for row in per_class]
        assert sum(shares) == hits
    if classes <= 100:
        matrix = np.array([[int(row[name]) for name in source.classes] for row in rows_of(tmp_path / "confusion.csv")])
        assert np.trace(matrix) == hits1
        assert matrix.sum() == IMAGES
        assert matrix.sum(1).tolist() == [int(row["images"]) for row in per_class]
    mistakes = rows_of(tmp_path / "mistakes.csv")
    assert len(mistakes) == min(IMAGES - hits1, 200)
    for row in mistakes:
        index = int(row["file"].split()[1].removesuffix(".jpg"))
        assert row["prediction"] == f"class {ranked[index, 0]}" != row["label"] == f"class {labels[index]}"
    assert json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)["odd"] is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_image_without_finite_logits_hits_nothing(bad: float) -> None:
    """NaN is no largest logit, infinity in the label's place no hit; the images beside it count as before."""
    logits, labels = made("some equal")
    broken = np.array([0, 149, 150, 399])
    logits[broken, labels[broken]] = bad
    scores = scored(logits, labels)
    outcomes = read_outcomes(scores.totals["outcomes"])
    sound = np.setdiff1d(np.arange(IMAGES), broken)
    found = places(logits[sound], labels[sound])
    assert scores.values["nonfinite"] == len(broken)
    assert scores.values["top1"] == 100 * (found < 1).sum() / IMAGES
    assert scores.values["top5"] == 100 * (found < 5).sum() / IMAGES
    assert np.flatnonzero(outcomes.predictions < 0).tolist() == broken.tolist()
    assert not outcomes.in_top5[broken].any()
    assert np.array_equal(outcomes.predictions[sound] == labels[sound], found < 1)


def checkpoint(path: Path, classes: list[str], change: str) -> Path:
    """A model whose head is changed: of equal rows, of zeros, or with numbers that are not finite."""
    recipe = get_recipe(
        "demo_pretrain", ["model.image_size=16", "run.precision=fp32", f"model.num_classes={len(classes)}"]
    )
    model = build_model(recipe.model, 0)
    with torch.no_grad():
        model.head.weight.mul_(20)
        if change == "zeros":
            model.head.weight.zero_()
        elif change == "equal rows":
            model.head.weight[1] = model.head.weight[0]
        elif change == "overflow":
            model.head.weight.fill_(3e38)
        elif change:
            model.head.bias[1] = float(change)
    content = {"model": model.state_dict(), "ema": None, "recipe": recipe.model_dump(mode="json"), "classes": classes}
    save_checkpoint(path, content)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classes b and d, 12 images each."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in "bd":
        (root / name).mkdir()
        for index in range(12):
            pixels = rng.integers(256, size=(16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def evaluated(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """The scores, which are the same on stdout, in --json and in the report."""
    assert main(["evaluate", *words, "--json", str(folder / "s.json"), "--report", str(folder / "report")]) == 0
    told = capsys.readouterr().out
    printed = json.loads((folder / "s.json").read_text(), parse_constant=pytest.fail)
    assert told.startswith(f"top-1 {printed['top1']:.2f} % ")
    assert printed == json.loads((folder / "report" / "scores.json").read_text())
    return printed


@pytest.mark.parametrize("change", ["", "zeros", "equal rows"])
@pytest.mark.parametrize("choice", ["data", "all", None])
def test_evaluate_and_predict_agree(
    change: str, choice: str | None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over all classes of the model, over the data's alone, and of a model with the data's classes in another order."""
    names = ["a", "b", "c", "d", "e", "f", "g"] if choice else ["d", "b"]
    path = checkpoint(tmp_path / "last.pt", names, change)
    words = [str(path), "--data", str(data), *(["--classes", choice] if choice else [])]
    scores = evaluated(words, tmp_path, capsys)
    files = sorted(data.glob("*/*.png"))
    assert main(["predict", str(path), *map(str, files), "--top", "7", "--json"]) == 0
    predicted = {each["image"]: each for each in json.loads(capsys.readouterr().out, parse_constant=pytest.fail)}
    kept = ["b", "d"] if choice == "data" else names
    assert scores["classes"] == len(kept)
    per_class = rows_of(tmp_path / "report" / "per_class.csv")
    assert [row["name"] for row in per_class] == kept
    ranked = {}
    for file in files:
        found = dict(zip(predicted[str(file)]["names"], predicted[str(file)]["scores"], strict=True))
        # predict breaks ties by the model's order, evaluate by the order of the classes that it chooses among: the same
        # but for those of the data alone
        ranked[str(file)] = sorted(kept, key=lambda name: (-found[name], kept.index(name)))
    first = {file: order[0] for file, order in ranked.items()}
    hits = sum(first[str(file)] == file.parent.name for file in files)
    hits5 = sum(file.parent.name in ranked[str(file)][:5] for file in files)
    assert (scores["top1"], scores["top5"]) == (100 * hits / 24, 100 * hits5 / 24)
    expected = binomtest(hits, 24).proportion_ci(method="wilson")
    assert scores["top1_interval"] == pytest.approx([100 * expected.low, 100 * expected.high])
    mistakes = {row["file"]: row for row in rows_of(tmp_path / "report" / "mistakes.csv")}
    assert mistakes.keys() == {str(file) for file in files if first[str(file)] != file.parent.name}
    for file, row in mistakes.items():
        assert row["prediction"] == first[file]
        if choice == "all":
            assert float(row["confidence"]) == pytest.approx(predicted[file]["scores"][0], abs=1e-6)
    columns = rows_of(tmp_path / "report" / "confusion.csv")
    assert sum(int(row[row["class"]]) for row in columns) == hits
    assert "ties" in scores if change == "zeros" else change or "ties" not in scores


def test_what_cannot_be_scored_is_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(next(data.glob("*/*.png")))
    for change in ("nan", "inf", "-inf"):
        path = checkpoint(tmp_path / f"{change}.pt", ["b", "d"], change)
        for file in (path, path.with_suffix(".safetensors")):
            for words in (["evaluate", str(file), "--data", str(data)], ["predict", str(file), image, "--json"],
                          ["convert", str(file), str(tmp_path / "out.pth")]):  # fmt: skip
                assert main(words) == 2
                told = capsys.readouterr()
                assert told.out == ""
                line = f"deit-fast: {file}: has NaN or infinity in head.bias, 1 of 2 numbers: expected finite ones\n"
                assert told.err == line
    path = checkpoint(tmp_path / "overflow.pt", ["b", "d"], "overflow")
    for words, line in (
        (["evaluate", str(path), "--data", str(data)], f"{path}: the logits of 24 of 24 images are not finite"),
        (["predict", str(path), image, "--json"], f"{image}: the model's logits are not finite"),
        (["convert", str(path), str(tmp_path / "o.pth")], f"{path}: the logits of random images are not finite"),
    ):  # fmt: skip
        assert main(words) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith(f"deit-fast: {line}")
        assert told.err.count("\n") == 1
    path = checkpoint(tmp_path / "more.pt", ["b", "c", "d"], "")
    assert main(["evaluate", str(path), "--data", str(data)]) == 2
    assert "has 2 of the 3 classes of" in capsys.readouterr().err
    path = checkpoint(tmp_path / "other.pt", ["b", "c", "e"], "")
    for choice in ("data", "all"):
        assert main(["evaluate", str(path), "--data", str(data), "--classes", choice]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_run_does_not_begin_from_weights_that_are_not_finite(
    bad: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another codebase too, by the file's own name, and where the head that has them would be drawn anew."""
    ours = checkpoint(tmp_path / "ours.pt", ["b", "d", "e"], bad)
    foreign = tmp_path / "ddp.pth"
    state = build_model(
        get_recipe("demo_pretrain", ["model.image_size=16", "model.num_classes=2"]).model, 0
    ).state_dict()
    state["blocks.1.norm1.weight"][5] = float(bad)
    torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}}, foreign)
    words = ["train", "demo_pretrain", "--data", str(data), "--out", str(tmp_path / "run"), "model.num_classes=2",
             "model.image_size=16", "run.global_batch=8"]  # fmt: skip
    for file, tensor in ((ours, "head.bias, 1 of 3"), (foreign, "module.blocks.1.norm1.weight, 1 of 128")):
        assert main([*words, "--init", str(file)]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == f"deit-fast: {file}: has NaN or infinity in {tensor} numbers: expected finite ones"
        assert not (tmp_path / "run" / "checkpoints").exists()
