"""The pages about runs: whole, self-contained HTML, whose numbers are those of other tools."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy.stats import binomtest

from deit_fast.checkpoint.format import save_checkpoint
from deit_fast.cli.main import main
from deit_fast.convert import detect
from deit_fast.data.sources.image_list import LIST_NAME
from deit_fast.data.sources.open import open_source
from deit_fast.infer import scored_images
from deit_fast.infer.outcomes import Outcomes
from deit_fast.infer.pages.attention import attention_maps
from deit_fast.infer.pages.charts import thinned
from deit_fast.infer.pages.compare import Paired, paired, short_names
from deit_fast.infer.pages.evaluated import Evaluated, confusion
from deit_fast.infer.pages.samples import training_samples
from deit_fast.infer.predict import load_model
from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe
from deit_fast.training.run import train

WORDS = ["model.image_size=32", "model.num_classes=3", "run.precision=fp32", "data.repeats=1"]
VOID = {"meta", "img", "input", "br", "link"}


class Whole(HTMLParser):
    """Checks that tags close in order, and gathers addresses and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.addresses, self.texts = list[str](), list[str](), list[str]()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_of(path: Path) -> Whole:
    text = path.read_text(encoding="utf-8")
    page = Whole(text)
    assert all(each.startswith("data:image/") for each in page.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)  # nothing is fetched
    return page


def made_run(folder: Path, data: Path, name: str, seed: int) -> Path:
    run = folder / name
    (run / "checkpoints").mkdir(parents=True)
    recipe = get_recipe("demo_pretrain", [*WORDS, f"run.seed={seed}", "mix.cutmix=1", "augment.erase=0.5",
                                          "augment.policy=three_augment"])  # fmt: skip
    torch.manual_seed(seed)
    content = {"model": build_model(recipe.model).state_dict(), "recipe": recipe.model_dump(mode="json"), "ema": None}
    classes = open_source(str(data), "val").classes
    save_checkpoint(run / "checkpoints" / "last.pt", content | {"classes": classes})
    (run / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json")))
    records = [{"kind": "train", "step": step, "epoch": step / 10, "loss": None if step == 20 else 1 / step, "lr": 1e-3,
                "images_per_second": 100.0, "data_wait": 0.1, "peak_memory_gib": 1.0}
               for step in range(10, 60, 10)]  # fmt: skip
    records.append({"kind": "eval", "step": 50, "top1": 40.0 + seed, "top5": 100.0, "loss": 1.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records) + '{"kind": "tr')
    start = {
        "time": "2026-01-01T00:00:00Z",
        "command": ["deit-fast", "train", "<script>alert(1)</script>"],
        "data": str(data),
    }
    (run / "starts.jsonl").write_text(json.dumps(start) + "\n")
    (run / "bad_files.txt").write_text("a<b>.jpg\tcannot be decoded\n")
    return run


def test_report_and_compare(folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [made_run(tmp_path, folder_data, name, seed) for seed, name in enumerate(("one", "two"))]
    for run in runs:
        assert main(["report", str(run)]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.splitlines() == [str(run / "report.html") for run in runs]
    page = page_of(runs[0] / "report.html")
    text = " ".join(page.texts)
    for title in ("Curves", "Recipe", "Data", "Inputs of the network", "Confusions", "Most confident mistakes",
                  "Attention of the class token", "Images that could not be used", "Machine and versions"):  # fmt: skip
        assert title in text
    assert "<script>alert" in text  # as text, not as a tag
    assert "a<b>.jpg" in text
    assert "mix.cutmix" in text
    assert any(word in text for word in ("CutMix", "erased"))
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "c.html")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("one  top-1 40.00 %")
    assert "on the same images" in lines[1]
    assert "run.seed" in " ".join(page_of(tmp_path / "c.html").texts)


def test_a_run_that_has_only_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert main(["report", str(run)]) == 2
    assert f"{run}: expected the folder of a run, with recipe.json in it" in capsys.readouterr().err
    (run / "recipe.json").write_text(json.dumps(get_recipe("demo_pretrain").model_dump(mode="json")))
    assert main(["report", str(run)]) == 0
    assert "nothing says which images it has: expected --data" in capsys.readouterr().err
    page_of(run / "report.html")
    assert main(["compare", str(run)]) == 2
    assert "expected two runs or more" in capsys.readouterr().err


def test_data_that_are_gone_cost_a_line(folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(tmp_path, folder_data, "run", 0)
    assert main(["report", str(run), "--data", str(tmp_path / "gone")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["training images are not shown",
                                                       "confusions, mistakes and attention are not shown"]  # fmt: skip


def test_a_report_reads_the_weights_once_and_the_images_of_each_part_once(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, opened = made_run(tmp_path, folder_data, "run", 0), list[str]()
    for place, name in ((detect, "find_weights"), (scored_images, "open_source")):
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *given, real=real, name=name, **more: (
            opened.append(name), real(*given, **more))[1])  # fmt: skip
    assert main(["report", str(run)]) == 0
    assert sorted(opened) == ["find_weights", "open_source", "open_source"]


def test_held_out_images_are_not_among_the_training_images(
    folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run with --val 0.25, and of one that takes its list: each part has its own images, also where they moved."""
    photos = shutil.copytree(folder_data / "train", tmp_path / "photos")
    total = len(list(photos.rglob("*.jpg")))
    words = ["model.num_classes=3", "schedule.epochs=1", "schedule.warmup_epochs=0.5", "run.global_batch=8"]
    first, second = tmp_path / "first", tmp_path / "second"
    train("demo_pretrain", photos, first, val=0.25, overrides=words)
    train("demo_pretrain", photos, second, val=first / LIST_NAME, overrides=[*words, "run.seed=1"])
    held = len(json.loads((first / LIST_NAME).read_text())["images"])
    assert 0 < held < total
    capsys.readouterr()
    moved = photos.rename(tmp_path / "moved")
    for run in (first, second):
        assert main(["report", str(run)]) == 0  # the images are not where they were
        assert len(capsys.readouterr().err.splitlines()) == 2
        assert main(["report", str(run), "--data", str(moved)]) == 0
        assert capsys.readouterr().err == ""
        text = " ".join(page_of(run / "report.html").texts)
        assert f"training: {total - held} images of" in text
        assert f"validation: {held} images of" in text
        assert len(np.load(run / "evaluation" / "outcomes.npz")["labels"]) == held
    assert main(["compare", str(first), str(second), "--out", str(tmp_path / "c.html")]) == 0
    assert "on the same images" in capsys.readouterr().out


def test_labels_of_validation_images_are_not_those_of_the_training_images(
    folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a run with --labels, whose validation images have no class folders."""
    root, rows = tmp_path / "data", ["id,label"]
    shutil.copytree(folder_data / "train", root / "train")
    (root / "val").mkdir()
    for image in sorted((folder_data / "val").rglob("*.jpg")):
        shutil.copyfile(image, root / "val" / f"{len(rows)}.jpg")
        rows.append(f"{len(rows)},{image.parent.name}")
    (tmp_path / "answers.csv").write_text("\n".join(rows) + "\n")
    run = made_run(tmp_path, folder_data, "run", 0)
    start = json.loads((run / "starts.jsonl").read_text())
    start |= {"data": str(root), "labels": str(tmp_path / "answers.csv")}
    (run / "starts.jsonl").write_text(json.dumps(start) + "\n")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().err == ""
    assert f"validation: {len(rows) - 1} images of" in " ".join(page_of(run / "report.html").texts)


def evaluated(right: list[bool], digest: str = "val") -> Evaluated:
    labels = np.arange(len(right)) % 3
    predictions = np.where(right, labels, (labels + 1) % 3)
    outcomes = Outcomes(predictions, np.ones(len(right)), np.array(right))
    return Evaluated(outcomes, labels, ["a", "b", "c"], digest)


def test_mcnemar_is_scipys_binomial_test() -> None:
    random = np.random.default_rng(0)
    first, second = random.random(400) < 0.6, random.random(400) < 0.7
    found = paired(evaluated(first.tolist()), evaluated(second.tolist()))
    assert found is not None
    gained, lost = int((~first & second).sum()), int((first & ~second).sum())
    assert (found.gained, found.lost, found.images) == (gained, lost, 400)
    assert found.p_value == pytest.approx(binomtest(gained, gained + lost).pvalue)
    assert found.difference == pytest.approx(100 * (second.mean() - first.mean()))
    low, high = found.interval
    assert low < found.difference < high
    assert Paired(1, 0, 1).interval[1] == 100  # an accuracy cannot change by more
    assert Paired(0, 1, 1).interval[0] == -100
    assert Paired(0, 0, 10).p_value == 1


def test_the_interval_covers() -> None:
    """Of 1,000 draws about 95 % have the true difference in their interval."""
    random, hits = np.random.default_rng(1), 0
    for _ in range(1000):
        kinds = random.choice(3, 300, p=[0.15, 0.1, 0.75])  # right in the second alone, in the first alone, in both
        low, high = Paired(int((kinds == 0).sum()), int((kinds == 1).sum()), 300).interval
        hits += low <= 5.0 <= high
    assert 930 <= hits <= 970


def test_other_images_are_not_paired() -> None:
    assert paired(evaluated([True] * 5), evaluated([True] * 6)) is None
    assert paired(evaluated([True] * 5), evaluated([True] * 5, "other")) is None


def test_numbers_of_the_confusions() -> None:
    page = Whole(confusion(evaluated([True, False, True, True, False, True])))
    assert [text for text in page.texts if text.strip().isdigit()] == ["2", "2", "2"]  # b was taken for c twice


def test_many_classes_are_listed_as_pairs() -> None:
    labels = np.repeat(np.arange(100), 2)
    predictions = labels.copy()
    predictions[[0, 1, 4]] = [7, 7, 9]
    names = [f"class {n}" for n in range(100)]
    found = Evaluated(Outcomes(predictions, np.ones(200), np.ones(200, bool)), labels, names, "")
    texts = [text for text in Whole(confusion(found)).texts if text.strip()]
    assert texts[4:8] == ["class 0", "class 7", "2", "100 %"]
    lowest = texts[texts.index("The classes with the lowest top-1:") + 1 :]
    assert lowest[:9] == ["class", "images", "top-1, %", "class 0", "2", "0.0", "class 2", "2", "50.0"]
    assert len(lowest) == 3 * 31
    fewer = Evaluated(Outcomes(predictions, np.ones(200), np.ones(200, bool)), labels, [*names, "none here"], "")
    assert "none here" not in confusion(fewer)


def test_no_spike_is_lost() -> None:
    points = [[step, step / 10, 1.0] for step in range(100_000)]
    points[54_321][2] = 99.0
    kept = thinned(points)
    assert len(kept) <= 1500
    assert points[54_321] in kept
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_names_that_tell_runs_apart() -> None:
    assert short_names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert short_names([Path("/a/x"), Path("/a/x")]) == ["/a/x (1)", "/a/x (2)"]


def test_attention_is_that_of_timm(folder_data: Path, tmp_path: Path) -> None:
    """timm's own extraction of the softmax, by its AttentionExtract, of the same weights."""
    from timm.utils.attention_extract import AttentionExtract

    run = made_run(tmp_path, folder_data, "run", 3)
    model = load_model(run)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = attention_maps(model, images)
    assert main(["convert", str(run), str(tmp_path / "timm")]) == 0
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    depth = len(theirs.blocks)
    for block in theirs.blocks:
        block.attn.fused_attn = False  # or there is no softmax to extract
    with torch.no_grad():
        ((_, expected),) = AttentionExtract(theirs, names=[f"blocks.{depth - 1}.attn.softmax"], method="fx")(
            images
        ).items()
    expected = expected[:, :, 0, 1:].mean(dim=1).reshape(found.shape)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_samples_are_of_the_recipe(folder_data: Path) -> None:
    recipe = get_recipe("demo_pretrain", [*WORDS, "augment.policy=three_augment", "augment.color_jitter=0.3"])
    samples = training_samples(recipe, open_source(str(folder_data), "train"), 8)
    assert len(samples) == 8
    for picture, name, words in samples:
        assert picture.shape == (32, 32, 3)
        assert name in open_source(str(folder_data), "train").classes
        assert sum(word in words for word in ("greyscale", "solarise", "blur")) == 1
    plain = get_recipe("demo_pretrain", [*WORDS, "augment.policy=none", "augment.color_jitter=0", "augment.flip=1"])
    assert {words for _, _, words in training_samples(plain, open_source(str(folder_data), "train"), 8)} == {"flipped"}
    assert Image.fromarray(samples[0][0]).size == (32, 32)
