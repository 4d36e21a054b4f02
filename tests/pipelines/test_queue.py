"""Pipelines in Slurm's queue, with a stand-in for Slurm's commands: what is submitted, when, and never twice."""

import shutil
from pathlib import Path

import pytest
from deit_fast.pipelines import dag
from deit_fast.pipelines.schedulers import find_scheduler
from torchx.runner import get_runner
from torchx.specs import AppState

from tests.pipelines.conftest import Slurm, demo

NAMES = ["pretrain", "evaluate_pretrain", "finetune", "evaluate_finetune"]


def finish(slurm: Slurm, tmp_path: Path, job: int) -> None:
    """A job ends as the trainer and the evaluation end: with a result."""
    slurm.set(job, "COMPLETED")
    mark = next(word for word in slurm.words(job) if word.startswith("--comment=")).partition("deit-fast:")[2]
    result = Path(mark) if mark.endswith(".json") else Path(mark) / "result.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text('{"top1": 50}')


def test_all_stages_are_queued_at_once_each_after_its_needs(
    slurm: Slurm, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert demo("--cfg", "time=60,comment=my project") == 0
    printed = capfd.readouterr().out
    assert [line.split()[1:4] for line in printed.splitlines()[:4]] == [
        [name, "queued", f"slurm://torchx/{index + 1}" + ("," if index else "")] for index, name in enumerate(NAMES)
    ]
    assert "In Slurm's queue" in printed
    assert "report" not in printed
    words = [slurm.words(job) for job in (1, 2, 3, 4)]
    assert [[word for word in each if "depend" in word or "invalid" in word] for each in words] == [
        [],
        *([f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes"] for job in (1, 1, 3)),
    ]
    assert all("--signal=USR1@120" in each for each in words)
    comments = [word for word in words[2] if "comment" in word]  # of two, sbatch takes the last
    assert comments[-1] == f"--comment=my project deit-fast:{tmp_path}/out/finetune"

    assert demo() == 0
    assert demo("--watch", "--max-parallel", "2") == 2
    assert slurm.count() == 4


def test_a_restart_appends_to_the_logs_unless_the_user_says_otherwise(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo() == 0
    assert all("--open-mode=append" in slurm.words(job) for job in (1, 2, 3, 4))
    monkeypatch.setenv("SBATCH_OPEN_MODE", "truncate")
    monkeypatch.setenv("SBATCH_SIGNAL", "USR1@30")
    assert demo("--out", "other") == 0
    assert not any(word.startswith(("--signal", "--open-mode")) for word in slurm.words(5))


def test_what_is_done_is_not_waited_for(slurm: Slurm, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert demo() == 0
    finish(slurm, tmp_path, 1)
    slurm.set(2, "FAILED")
    slurm.set(3, "RUNNING")
    (tmp_path / "slurm-2-evaluate-0.err").write_text("no such image\n")
    assert demo() == 0
    printed = capfd.readouterr().out
    assert "done" in printed
    assert "FAILED" in printed
    assert "    no such image" in printed
    assert slurm.count() == 5  # the evaluation alone, after nothing that Slurm may have forgotten
    assert not any("dependency" in word for word in slurm.words(5))
    for job in (3, 4, 5):
        finish(slurm, tmp_path, job)
    assert demo() == 0
    assert "| evaluate_finetune |" in capfd.readouterr().out
    assert slurm.count() == 5


def test_what_was_removed_runs_again(slurm: Slurm, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert demo() == 0
    for job in (1, 2, 3, 4):
        finish(slurm, tmp_path, job)
    assert demo() == 0
    assert capfd.readouterr().out.count("done before") == 4
    (tmp_path / "out" / "pretrain" / "evaluation.json").unlink()
    shutil.rmtree(tmp_path / "out" / "finetune")
    assert demo() == 0
    assert slurm.count() == 7
    assert "--dependency=afterok:6" in slurm.words(7)


def test_a_failure_cancels_what_waits_for_it_and_a_rerun_replaces_all(
    slurm: Slurm, capfd: pytest.CaptureFixture[str]
) -> None:
    assert demo() == 0
    slurm.set(1, "TIMEOUT")
    slurm.set(2, "CANCELLED by 0")  # Slurm has not come to the others yet
    assert demo() == 0
    assert [slurm.state(job) for job in range(1, 9)] == ["TIMEOUT", *["CANCELLED by 0"] * 3, *["PENDING"] * 4]
    assert "--dependency=afterok:5" in slurm.words(7)
    assert capfd.readouterr().out.count("attempt 2") == 4


def test_watching_tells_a_failure_from_what_it_cancels(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(seconds: float) -> None:
        finish(slurm, tmp_path, 1)
        finish(slurm, tmp_path, 2)
        slurm.set(3, "OUT_OF_MEMORY")
        slurm.set(4, "CANCELLED")

    monkeypatch.setattr(dag.time, "sleep", fail)
    assert demo("--watch") == 1
    printed = capfd.readouterr().out
    assert [line.split()[1:3] for line in printed.splitlines()[4:7]] == [
        ["pretrain", "done"],
        ["evaluate_pretrain", "done"],
        ["finetune", "FAILED"],
    ]
    assert "evaluate_finetune  not started: a stage it needs failed" in printed
    assert slurm.count() == 4


def test_a_refused_job_stops_what_needs_it(slurm: Slurm, capfd: pytest.CaptureFixture[str]) -> None:
    (slurm.folder / "refuse").touch()
    assert demo() == 1
    captured = capfd.readouterr()
    assert "pretrain           could not start: sbatch: error: invalid account\n" in captured.out
    assert captured.err == ""
    (slurm.folder / "refuse").unlink()
    assert demo() == 0
    assert slurm.count() == 4


def test_without_slurm_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demo() == 2
    assert capfd.readouterr().err.startswith("deit-fast: squeue: ")


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        ("COMPLETED\nCOMPLETED", AppState.SUCCEEDED),
        ("COMPLETED\nRUNNING", AppState.RUNNING),
        ("PENDING\nPENDING", AppState.PENDING),
        ("COMPLETING\nFAILED", AppState.RUNNING),
        ("CANCELLED by 0\nFAILED", AppState.FAILED),
        ("CANCELLED by 0\nCOMPLETED", AppState.CANCELLED),
        ("NODE_FAIL\nPENDING", AppState.PENDING),
        ("\n", None),
    ],
)
def test_states_of_all_parts_make_one(lines: str, state: AppState | None, slurm: Slurm) -> None:
    assert demo() == 0
    slurm.set(1, lines)
    with get_runner() as runner:
        assert find_scheduler("slurm").state(runner, "slurm://torchx/1") is state
