"""A run that was given relative paths is reported, evaluated and resumed from any folder."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from deit_fast.checkpoint.format import load_checkpoint
from deit_fast.cli.main import main
from deit_fast.runtime.object_store import absolute_place
from deit_fast.training.run import train

WORDS = ["model.image_size=16", "model.num_classes=3", "run.global_batch=16", "schedule.epochs=2", "run.trackers=[]",
         "schedule.warmup_epochs=1", "run.log_every=5", "run.precision=fp32", "run.compile=off",
         "run.eval_every=1"]  # fmt: skip


def starts(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]


@pytest.fixture
def home(folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the run is started. It holds a symlink to the data, whose target is elsewhere."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "photos").symlink_to(folder_data)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(home)
    return home


def test_from_another_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["schedule.epochs=1", "schedule.warmup_epochs=0"]
    train("demo_pretrain", "photos/train", "first", 0, overrides=[*WORDS, *short])
    init = "first/checkpoints/last.pt"
    train("demo_pretrain", "photos/train", "run", "photos/val", init, overrides=WORDS)
    run, given = home / "run", {"data": f"{home}/photos/train", "val": f"{home}/photos/val", "labels": None}
    assert starts(run)[0].items() >= {**given, "init": f"{home}/{init}", "teacher": None}.items()
    result = json.loads((run / "result.json").read_text())
    assert (result["checkpoint"], result["init"]["weights"]) == (f"{run}/checkpoints/last.pt", f"{home}/{init}")
    whole = load_checkpoint(run / "checkpoints" / "last.pt", torch.device("cpu"))

    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(["report", "../home/run"]) == 0
    assert capsys.readouterr().err == ""
    for data, val, weights in (
        (f"{home}/photos/train", f"{home}/photos/val", f"{home}/{init}"),
        ("../home/photos/train", "../home/photos/val", "../home/first/checkpoints/last.pt"),
    ):
        for path in (run / "checkpoints").iterdir():  # as of a run that was stopped after its first epoch
            if not path.name.startswith("step-0000006"):
                path.unlink()
        train("demo_pretrain", data, run, val, weights, overrides=WORDS)
        resumed = load_checkpoint(run / "checkpoints" / "last.pt", torch.device("cpu"))
        assert starts(run)[-1]["step"] == 6
        assert (resumed["init"], resumed["data"]) == (whole["init"], whole["data"])
        assert all(torch.equal(value, whole["model"][name]) for name, value in resumed["model"].items())
    says = capsys.readouterr().out
    assert f"resumed from {run}/checkpoints/step-0000006.pt" in says
    assert "not read, since the run began with" not in says


def test_held_out_images(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train("demo_pretrain", "photos/train", "run", 0.25, overrides=WORDS)
    assert starts(home / "run")[0]["val"] == "0.25"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["evaluate", str(home / "run")]) == 0


def test_an_earlier_versions_relative_path(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train("demo_pretrain", "photos", "run", overrides=WORDS)
    start = starts(home / "run")[0]
    (home / "run" / "starts.jsonl").write_text(json.dumps({**start, "data": "photos"}) + "\n")
    capsys.readouterr()
    assert main(["report", "run"]) == 0  # from the folder in which it was started
    assert capsys.readouterr().err == ""
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["report", str(home / "run")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": photos: expected a local folder")[0] for line in lines[:2]] == [
        "deit-fast: training images are not shown", "deit-fast: confusions, mistakes and attention are not shown",
    ]  # fmt: skip
    (line,) = lines[2:]
    assert line == (f"deit-fast: {home}/run: photos is the relative path that the run was given; looked for in "
                    f"{tmp_path}/elsewhere: expected --data")  # fmt: skip
    assert main(["report", str(home / "run"), "--data", "nowhere"]) == 0
    assert "relative path" not in capsys.readouterr().err


def test_absolute_places(home: Path) -> None:
    assert absolute_place("photos/train/") == f"{home}/photos/train"
    assert absolute_place("photos/../x-{0..9}.tar") == f"{home}/photos/../x-{{0..9}}.tar"
    assert absolute_place("~/x") == os.path.expanduser("~/x")
    for uri in ("s3://bucket/a", "https://host/a?b=../c", "hf://datasets/a/b"):
        assert absolute_place(uri) == uri
