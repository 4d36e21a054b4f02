"""The report of an evaluation: against scikit-learn and scipy, over two processes, with every file read back."""

import csv
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import classification_report
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from torchvision import transforms
from torchvision.datasets import ImageFolder

from deit_fast.checkpoint.format import save_checkpoint
from deit_fast.cli.main import main
from deit_fast.data.loader.batches import Batch
from deit_fast.data.sources.base import Source
from deit_fast.infer.evaluate import evaluate
from deit_fast.infer.outcomes import Outcomes, outcome_rows, read_outcomes
from deit_fast.infer.report import confusion_matrix, wilson_interval, write_report
from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.world import World
from tests.conftest import ROOT


def test_any_name_of_a_class_can_be_drawn(tmp_path: Path) -> None:
    """Dollar signs are no formulas, and letters that the font lacks, or names of 200 letters, print no warning."""
    source, outcomes = invented(8, 50)
    source.classes = ["$5_$", "a$b$", "$\\frac$", "日本語の長い名前", "🐈", "x" * 200, "two\nlines", "\udcff"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(tmp_path, source, outcomes, {})
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 400
    with open(tmp_path / "confusion.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert next(csv.reader(file)) == ["class", *source.classes]


@pytest.mark.parametrize(("hits", "images"), [(0, 10), (10, 10), (1, 3), (41_690, 50_000), (50_000, 50_000), (0, 1)])
def test_wilson_intervals_are_scipys(hits: int, images: int) -> None:
    expected = binomtest(hits, images).proportion_ci(method="wilson")
    assert wilson_interval(hits, images) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)
    assert wilson_interval(0, 0) == (0.0, 100.0)


class Numbered(Source):
    """A source of labels alone."""

    def read(self, index: int) -> NDArray[np.uint8]:
        raise NotImplementedError

    def name(self, index: int) -> str:
        return f"image {index}.jpg"


def invented(classes: int, images: int) -> tuple[Source, Outcomes]:
    """Half of the images right; the last class has no images."""
    rng = np.random.default_rng(classes)
    labels = rng.integers(classes - 1, size=images)
    predictions = np.where(rng.random(images) < 0.5, labels, rng.integers(classes, size=images))
    in_top5 = (predictions == labels) | (rng.random(images) < 0.3)
    source = Numbered("invented", [f"class, {n} ü" for n in range(classes)], labels)
    return source, Outcomes(predictions, rng.random(images), in_top5)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("classes", [7, 100, 101])
def test_every_file_says_what_scikit_learn_says(classes: int, tmp_path: Path) -> None:
    source, outcomes = invented(classes, 700)
    write_report(tmp_path / "report", source, outcomes, {"top1": float("nan")})
    folder = tmp_path / "report"
    expected = sklearn_confusion_matrix(source.labels, outcomes.predictions, labels=range(classes))
    assert np.array_equal(confusion_matrix(source.labels, outcomes.predictions, classes), expected)
    picture = {"confusion.csv", "confusion.png"} if classes <= 100 else {"confusion.npz"}
    tables = {"scores.json", "per_class.csv", "mistakes.csv", "outcomes.npz"}
    assert {path.name for path in folder.iterdir()} == {*tables, *picture}
    with np.load(folder / "outcomes.npz") as held:
        assert np.array_equal(held["predictions"], outcomes.predictions)
        assert (held["classes"].tolist(), held["labels"].tolist()) == (source.classes, source.labels.tolist())
    if classes <= 100:
        with open(folder / "confusion.csv", encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["class", *source.classes]
        assert [row[0] for row in rows] == source.classes
        assert np.array_equal(np.array([row[1:] for row in rows], int), expected)
        with Image.open(folder / "confusion.png") as image:
            assert min(image.size) > 200
    else:
        assert np.array_equal(scipy.sparse.load_npz(folder / "confusion.npz").toarray(), expected)

    recalls = classification_report(
        source.labels, outcomes.predictions, labels=range(classes), output_dict=True, zero_division=0
    )
    per_class = rows_of(folder / "per_class.csv")
    for label, row in enumerate(per_class):
        assert (row["class"], row["name"]) == (str(label), source.classes[label])
        images = int(row["images"])
        assert images == recalls[str(label)]["support"]
        if not images:
            assert row["top1"] == row["top1_low"] == row["top5"] == ""
            continue
        assert float(row["top1"]) == pytest.approx(100 * recalls[str(label)]["recall"], abs=0.006)
        assert float(row["top1_low"]) <= float(row["top1"]) <= float(row["top1_high"])
        assert float(row["top5"]) == pytest.approx(100 * outcomes.in_top5[source.labels == label].mean(), abs=0.006)
    assert per_class[-1]["images"] == "0"

    mistakes = rows_of(folder / "mistakes.csv")
    wrong = [index for index in range(700) if outcomes.predictions[index] != source.labels[index]]
    wrong.sort(key=lambda index: -outcomes.confidences[index])
    assert [row["file"] for row in mistakes] == [f"image {index}.jpg" for index in wrong[:200]]
    assert mistakes[0]["label"] == source.classes[source.labels[wrong[0]]]
    assert mistakes[0]["prediction"] == source.classes[outcomes.predictions[wrong[0]]]
    assert float(mistakes[0]["confidence"]) == pytest.approx(outcomes.confidences[wrong[0]], abs=1e-6)
    assert json.loads((folder / "scores.json").read_text()) == {"top1": None}


def test_padding_and_batches_without_images_leave_no_outcome() -> None:
    world, logits = World(0, 1, torch.device("cpu")), 5 * torch.eye(7)[[6, 2, 3, 0]] + torch.arange(7) / 10
    labels = torch.tensor([6, 1, 3, 2])

    def batch(indices: list[int], valid: int) -> Batch:
        return Batch(torch.tensor(indices), labels[indices], np.array(indices), None, 0, 0, valid)

    batches = [batch([2, 0], 2), batch([3, 1, 1], 2), batch([0, 0], 0)]
    metrics = {"outcomes": outcome_rows(4)}
    scores = evaluate(lambda images: logits[images], batches, world, metrics=metrics)  # type: ignore[arg-type]
    outcomes = read_outcomes(scores.totals["outcomes"])
    assert outcomes.predictions.tolist() == [6, 2, 3, 0]
    assert outcomes.in_top5.tolist() == [True, False, True, False]  # 1 comes sixth after 2, 6, 5, 4, 3
    assert outcomes.confidences == pytest.approx(softmax(logits.numpy(), axis=1).max(axis=1))
    scores = evaluate(lambda images: logits[images], batches[1:], world, metrics=metrics)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="exactly once"):
        read_outcomes(scores.totals["outcomes"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that predicts what it likes, which is not the same for all images."""
    recipe = get_recipe("demo_pretrain", ["model.image_size=32", "model.num_classes=3", "run.precision=fp32"])
    torch.manual_seed(1)
    model = build_model(recipe.model)
    with torch.no_grad():
        model.head.weight.mul_(20)
    path = tmp_path_factory.mktemp("checkpoint") / "last.pt"
    content = {"model": model.state_dict(), "ema": None, "recipe": recipe.model_dump(mode="json")}
    save_checkpoint(path, content)
    return path


def test_two_processes_write_the_report_of_one(checkpoint: Path, folder_data: Path, tmp_path: Path) -> None:
    """And the one's is what timm's model makes of torchvision's images: 33 of them, which two cannot share evenly."""
    data = tmp_path / "data"
    for split in ("train", "val"):
        (data / split).parent.mkdir(exist_ok=True)
        (data / split).symlink_to(folder_data / split)
    words = ["evaluate", str(checkpoint), "--data", str(data), "--flip", "--report"]
    assert main([*words, str(tmp_path / "one")]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    both = subprocess.run([*torchrun, "-m", "deit_fast.cli", *words, str(tmp_path / "two")], env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert both.returncode == 0, both.stderr
    scores = [json.loads((tmp_path / each / "scores.json").read_text()) for each in ("one", "two")]
    (line,) = both.stdout.splitlines()  # of the main process alone
    assert line.startswith(f"top-1 {scores[1]['top1']:.2f} % ")
    for key in ("top1", "top5", "loss", "images", "top1_interval", "top5_interval", "flip"):
        assert scores[0][key] == pytest.approx(scores[1][key], rel=1e-5), key
    for file in ("per_class.csv", "confusion.csv"):
        assert (tmp_path / "one" / file).read_text() == (tmp_path / "two" / file).read_text()
    mistakes = [{row["file"]: row for row in rows_of(tmp_path / each / "mistakes.csv")} for each in ("one", "two")]
    assert mistakes[0].keys() == mistakes[1].keys()

    recipe = get_recipe("demo_pretrain", ["model.image_size=32", "model.num_classes=3"])
    model = build_model(recipe.model).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    chain = transforms.Compose([
        transforms.Resize(32, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(32),
        transforms.ToTensor(), transforms.Normalize(recipe.data.mean, recipe.data.std),
    ])  # fmt: skip
    oracle = ImageFolder(str(data / "val"), chain)
    images, labels = torch.stack([image for image, _ in oracle]), np.array(oracle.targets)
    with torch.no_grad():
        logits = (model(images) + model(images.flip(3))) / 2
    predictions = logits.argmax(1).numpy()
    assert len(set(predictions)) > 1, "a model that says one thing tests nothing"
    matrix = sklearn_confusion_matrix(labels, predictions)
    rows = rows_of(tmp_path / "one" / "confusion.csv")
    assert np.array_equal(np.array([[row[name] for name in oracle.classes] for row in rows], int), matrix)
    wrong = {oracle.samples[index][0] for index in np.flatnonzero(predictions != labels)}
    assert mistakes[0].keys() == wrong
    confidences = logits.softmax(1).max(1).values
    for index, (file, _) in enumerate(oracle.samples):
        if file in wrong:
            row = mistakes[0][file]
            assert (row["label"], row["prediction"]) == tuple(
                oracle.classes[n] for n in (labels[index], predictions[index])
            )
            assert float(row["confidence"]) == pytest.approx(confidences[index].item(), abs=0.03)
    hits = int((predictions == labels).sum())
    expected = binomtest(hits, len(labels)).proportion_ci(method="wilson")
    assert scores[0]["top1_interval"] == pytest.approx([100 * expected.low, 100 * expected.high])


def test_real_labels_and_numbered_folders(checkpoint: Path, folder_data: Path, tmp_path: Path) -> None:
    """A set like ImageNet-V2, of folders 0 to K - 1, evaluated like ImageNet-ReaL."""
    number = 0
    for label in range(3):
        (tmp_path / "v2" / str(label)).mkdir(parents=True)
        for image in sorted((folder_data / "val" / f"class{label}").iterdir()):
            number += 1
            (tmp_path / "v2" / str(label) / f"ILSVRC2012_val_{number:08}.jpg").symlink_to(image)
    real, scores_path = tmp_path / "real.json", tmp_path / "scores.json"
    words = ["evaluate", str(checkpoint), "--data", str(tmp_path / "v2"), "--json", str(scores_path)]
    own = [[label] for label in range(3) for _ in range(11)]
    for lists, images in (([[0, 1, 2]] * 32 + [[]], 32), (own, 33)):
        real.write_text(json.dumps(lists))
        assert main([*words, "--real", str(real)]) == 0
        scores = json.loads(scores_path.read_text())
        assert scores["real_images"] == images
        assert scores["real_top1"] == pytest.approx(scores["top1"] if lists is own else 100)


def test_one_line_for_what_cannot_be_evaluated(
    checkpoint: Path, folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(checkpoint), "--data", str(folder_data)]
    (tmp_path / "file").touch()
    (tmp_path / "real.json").write_text("[[0]]")
    (tmp_path / "two" / "a").mkdir(parents=True)
    (tmp_path / "two" / "b").mkdir()
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / "two" / name / "x.png")
    for more, message in (
        (["--report", str(tmp_path / "file" / "report")], "Not a directory"),
        (["--real", str(tmp_path / "real.json")], "expected labels for the 33 images"),
        (["--real", str(tmp_path / "none.json")], "expected a readable list"),
        (["--metric", f"real={tmp_path / 'real.json'}"], "expected labels for the 33 images"),
        (
            ["--metric", "rael=real.json"],
            "--metric rael=real.json: unknown; always on: accuracy, loss; to ask for: real=FILE (did you mean 'real'?)",
        ),
        (["--metric", "loss"], "--metric loss: loss is always on; to ask for: real=FILE"),
        (["--metric", "real="], "--metric real=: expected real=FILE"),
        (["--metric", "real"], "--metric real: expected real=FILE"),
        (["model.num_classes=5"], "model.num_classes=5: expected 3"),
        (["--data", str(tmp_path / "two")], f"expected the classes of {checkpoint}, 3 in number, found 2"),
        (["data.category=genus"], "data.category='genus': expected iNaturalist's annotations"),
    ):
        assert main([*words, *more]) == 2, more
        complaint = capsys.readouterr().err
        assert message in complaint
        assert complaint.count("\n") == 1
