"""What follows which step: lines of metrics, evaluations, checkpoints, and the answer to a signal."""

from dataclasses import replace
from pathlib import Path

import pytest

from deit_fast.runtime.stopping import StopSignal
from deit_fast.runtime.world import World
from deit_fast.training import periodic
from deit_fast.training.loop import what_is_due
from deit_fast.training.run import train
from tests.training.test_prepare import CPU, plan

# Six steps per epoch.
WORDS = ["schedule.epochs=4", "run.log_every=5", "run.eval_every=2", "run.checkpoint_every=7", "run.nonfinite_limit=4"]


def test_every_so_often(folder_data: Path, tmp_path: Path) -> None:
    job, stop = plan(folder_data, tmp_path, *WORDS), StopSignal()
    due = {step: what_is_due(job, step, stop) for step in range(1, 25)}
    assert job.total_steps == 24
    assert [step for step in due if due[step].evaluate] == [12, 24]
    assert [step for step in due if due[step].save] == [7, 12, 14, 21, 24]
    assert [step for step in due if due[step].log] == [5, 7, 10, 12, 14, 15, 20, 21, 24]
    assert [step for step in due if due[step].check] == [4, 7, 8, 12, 14, 16, 20, 21, 24]
    assert not any(each.stop for each in due.values())


def test_a_signal_is_answered_with_a_checkpoint_unless_the_run_ends_anyway(folder_data: Path, tmp_path: Path) -> None:
    job, stop = plan(folder_data, tmp_path, *WORDS), StopSignal()
    stop.received = True
    assert what_is_due(job, 9, stop) == (True, True, False, True, True)
    assert what_is_due(job, 24, stop) == (True, True, True, True, False)


def test_several_processes_agree_now_and_then(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each agreement is a collective: between them nobody may ask."""
    asked: list[bool] = []
    monkeypatch.setattr(World, "any", lambda self, flag: asked.append(flag) or True)
    job = replace(plan(folder_data, tmp_path, *WORDS), world=World(0, 2, CPU.device))
    assert [step for step in range(1, 24) if what_is_due(job, step, StopSignal()).stop] == [10, 20]
    assert asked == [False, False]


def test_pages_are_drawn_once_for_each_evaluation(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last time with the result, and so only once at the end."""
    drawn, real = list[bool](), periodic.write_run_page
    monkeypatch.setattr(periodic, "write_run_page", lambda run: drawn.append(run.result is not None) or real(run))
    words = ["model.num_classes=3", "schedule.epochs=3", "schedule.warmup_epochs=1", "run.global_batch=8"]
    train("demo_pretrain", folder_data, tmp_path / "run", overrides=[*words, "run.eval_every=1"])
    assert drawn == [False, False, True]
