"""`deit-fast evaluate` for a person: a sentence, a table over checkpoints and data sets, timm's CSV."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from deit_fast.checkpoint.format import save_checkpoint
from deit_fast.cli.main import main
from deit_fast.infer.evaluate import evaluate_checkpoint
from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe

WORDS = ["model.image_size=32", "model.num_classes=3", "run.precision=fp32"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    recipe, folder = get_recipe("demo_pretrain", WORDS), tmp_path_factory.mktemp("weights")
    for seed in (1, 2):
        torch.manual_seed(seed)
        content = {"model": build_model(recipe.model).state_dict(), "recipe": recipe.model_dump(mode="json")}
        save_checkpoint(folder / f"{seed}.pt", content | {"ema": None})
    return sorted(folder.glob("*.pt"))


def test_a_sentence(
    checkpoints: list[Path], folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = evaluate_checkpoint(checkpoints[0], folder_data)
    assert main(["evaluate", str(checkpoints[0]), "--data", str(folder_data), "--json", str(tmp_path / "s.json")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    low, high = scores["top1_interval"]
    assert line.startswith(f"top-1 {scores['top1']:.2f} % ({low:.1f} to {high:.1f}), loss {scores['loss']:.3f}: ")
    assert line.endswith(f"{scores['images']} images of {scores['data']} at 32 px, {checkpoints[0]}")
    assert json.loads((tmp_path / "s.json").read_text())["top1"] == scores["top1"]
    assert main(["evaluate", str(checkpoints[0]), "--data", str(folder_data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == scores["top1"]


def test_a_table(
    checkpoints: list[Path], folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder_data / "val", tmp_path / "other")
    words = ["--data", str(folder_data), "--data", str(tmp_path / "other"), "--csv", str(tmp_path / "results.csv")]
    assert main(["evaluate", *map(str, checkpoints), "data.eval_crop_ratio=1.0", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("top-1 ") for line in lines[:5]] == [True] * 4 + [False]
    assert lines[5].split()[:5] == ["checkpoint", "data", "px", "images", "top-1"]
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # The columns that timm's validate.py writes, in its order, are there.
    theirs = ["model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation"]
    assert [name for name in rows[0] if name in theirs] == theirs
    assert [row["model"] for row in rows] == [str(each) for each in checkpoints for _ in range(2)]
    for row in rows:
        assert float(row["top1"]) + float(row["top1_err"]) == pytest.approx(100)
        assert (row["img_size"], row["crop_pct"]) == ("32", "1")
    scores = evaluate_checkpoint(checkpoints[1], tmp_path / "other", ["data.eval_crop_ratio=1.0"])
    assert float(rows[3]["top1"]) == pytest.approx(scores["top1"], abs=1e-3)


def test_one_of_several_is_refused(checkpoints: list[Path], folder_data: Path, tmp_path: Path,
                                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    absent = tmp_path / "absent"
    assert main(["evaluate", str(checkpoints[0]), "--data", str(absent), "--data", str(folder_data)]) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith(f"deit-fast: {absent}: ")
    assert printed.out.startswith("top-1 ")


def test_a_checkpoint_of_several_that_is_none(checkpoints: list[Path], folder_data: Path, tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    words = ["--data", str(folder_data), "--csv", str(tmp_path / "scores.csv")]
    assert main(["evaluate", "absent.pt", str(checkpoints[0]), *words]) == 2
    printed = capsys.readouterr()
    assert "deit-fast: absent.pt: no such checkpoint" in printed.err.splitlines()
    assert printed.out.startswith("top-1 ")
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 2


def test_a_folder_in_the_place_of_the_table(checkpoints: list[Path], tmp_path: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """It is refused before the evaluation."""
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["evaluate", str(checkpoints[0]), "--data", "d", "--csv", str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument --csv: expected a file, got the folder {tmp_path} (see" in line


@pytest.mark.parametrize(("words", "says"), [
    (["--json", "FOLDER"], "expected a file for the scores; to print them, put --json last"),
    (["--report", "r", "--data", "other"], "--report r: expected one checkpoint and one --data, got 2 evaluations"),
])  # fmt: skip
def test_words_that_cannot_be(words: list[str], says: str, checkpoints: list[Path], tmp_path: Path,
                              capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    words = [str(tmp_path) if word == "FOLDER" else word for word in words]
    assert main(["evaluate", str(checkpoints[0]), "--data", "d", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
