"""The pipeline's --dry-run: the plan of every training, by `deit-fast plan` in a process of its own."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deit_fast.pipelines import plans
from deit_fast.pipelines.deit3 import main


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The words after `deit-fast plan` of each stage, which prints a line; WORLD_SIZE is the first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    found: list[list[str]] = []

    def run(command: list[str], env: dict[str, str], **_: Any) -> SimpleNamespace:
        assert command[1:4] == ["-m", "deit_fast.cli", "plan"]
        found.append([env["WORLD_SIZE"], *command[4:]])
        return SimpleNamespace(returncode=0, stdout="the plan\n", stderr="")

    monkeypatch.setattr(plans, "subprocess", SimpleNamespace(run=run))
    return found


def test_every_training_is_planned_with_its_own_words(
    asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "digits" / "train").mkdir(parents=True)
    words = ["--size", "demo", "--data", "digits", "--out", "out", "--dry-run", "run.seed=5", "finetune:optim.lr=1e-4"]
    assert main([*words, "-j", "1x2"]) == 0
    assert asked == [
        ["2", "demo_pretrain", "run.seed=5", "--data", "digits"],
        ["2", "demo_finetune", "run.seed=5", "optim.lr=1e-4", "--data", "digits"],
    ]
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("===")] == [
        "=== pretrain", "=== evaluate_pretrain, after pretrain", "=== finetune, after pretrain",
        "=== evaluate_finetune, after finetune",
    ]  # fmt: skip
    assert printed.count("the plan") == 2
    assert "evaluates " in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "machine", "note"),
    [
        (["-j", "4x8", "-h", "h100"], ["--gpus", "32xh100"], ""),
        (["-j", "2x8", "--gpu", "8"], ["--gpus", "16", "--memory", "80"], "no -h names the kind of GPU"),
    ],
)
def test_on_a_cluster_of_data_that_are_elsewhere(
    words: list[str], machine: list[str], note: str, asked: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--size", "small", "--data", "/there/imagenet", "--out", "/there/out", "--scheduler", "slurm"]
    assert main([*given, "--cfg", "time=60", "--dry-run", *words]) == 0
    assert asked[0][1:] == ["deit3_small_1k_224", *machine]
    printed = capsys.readouterr().out
    assert "(/there/imagenet is not to be seen from here" in printed
    assert note in printed


def test_a_stage_that_cannot_be_planned_is_named(
    asked: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "digits" / "train").mkdir(parents=True)
    refused = SimpleNamespace(returncode=2, stdout="", stderr="noise\ndeit-fast: digits: expected images\n")
    monkeypatch.setattr(plans, "subprocess", SimpleNamespace(run=lambda *_, **__: refused))
    assert main(["--size", "demo", "--data", "digits", "--out", "out", "--dry-run"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "deit-fast: stage 'pretrain': digits: expected images"


@pytest.mark.soak
def test_the_plans_of_the_demo(folder_data: Path, tmp_path: Path) -> None:
    command = [plans.sys.executable, "-m", "deit_fast.pipelines.deit3", "--size", "demo", "--data", str(folder_data)]
    done = subprocess.run([*command, "--out", str(tmp_path / "out"), "--dry-run", "-j", "1x2", "model.num_classes=3"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "demo_pretrain on 2 x CPU" in done.stdout
    assert "32 views = 2 processes x 1 pass x 16 images" in done.stdout
    assert done.stdout.count("96 images of 3 classes, 33 to validate on") == 2
