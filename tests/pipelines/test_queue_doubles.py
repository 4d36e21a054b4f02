"""Drivers that were killed while they submitted to Slurm: no stage runs twice, and what follows waits for one job."""

import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from deit_fast.pipelines.schedulers import find_scheduler

from tests.pipelines.conftest import Slurm, demo, wait_for


def test_a_driver_killed_right_after_sbatch_is_made_good(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slurm.folder / "die").touch()
    words = ["--size", "demo", "--data", "digits", "--out", "out", "--scheduler", "slurm"]
    killed = subprocess.run([sys.executable, "-m", "deit_fast.pipelines.deit3", *words], capture_output=True)
    assert killed.returncode == -9
    assert slurm.count() == 1
    assert json.loads((tmp_path / "out" / "pipeline.json").read_text()) == {"stages": {}}
    (slurm.folder / "die").unlink()
    assert demo() == 0
    assert slurm.count() == 4
    assert "--dependency=afterok:1" in slurm.words(2)


def kill_a_driver_in_sbatch(slurm: Slurm) -> None:
    """Leaves an sbatch that submits nothing as long as there is a file `slow`."""
    (slurm.folder / "slow").touch()
    words = ["--size", "demo", "--data", "digits", "--out", "out", "--scheduler", "slurm"]
    driver = subprocess.Popen([sys.executable, "-m", "deit_fast.pipelines.deit3", *words], stdout=subprocess.DEVNULL)
    wait_for(slurm.folder / "begun", seconds=60)
    driver.kill()
    driver.wait()


def late(slurm: Slurm, number: int, like: int) -> None:
    """The job of an sbatch that was slow, on another machine."""
    (slurm.folder / f"{number}.json").write_text((slurm.folder / f"{like}.json").read_text())


def test_a_slow_sbatch_that_outlives_its_driver_is_waited_for(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_a_driver_in_sbatch(slurm)
    module = sys.modules[type(find_scheduler("slurm")).__module__]
    waited = []

    def sleep(seconds: float) -> None:
        waited.append(slurm.count())
        (slurm.folder / "slow").unlink(missing_ok=True)
        time.sleep(0.1)

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    assert demo() == 0
    assert waited[0] == 0
    assert slurm.count() == 4
    assert [word for job in (2, 3) for word in slurm.words(job) if "depend" in word] == ["--dependency=afterok:1"] * 2


def test_of_two_jobs_that_make_the_same_the_younger_is_cancelled(
    slurm: Slurm, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert demo() == 0
    late(slurm, 5, like=1)
    assert demo() == 0
    assert [slurm.state(job) for job in range(1, 6)] == ["PENDING"] * 4 + ["CANCELLED by 0"]
    assert (
        "pretrain           cancelled     slurm://torchx/5: slurm://torchx/1, which is older, makes the same"
        in capfd.readouterr().out
    )
    assert json.loads((tmp_path / "out/pipeline.json").read_text())["stages"]["pretrain"]["handle"].endswith("/1")


def test_what_waits_for_a_cancelled_double_is_queued_anew(slurm: Slurm, tmp_path: Path) -> None:
    assert demo() == 0
    for job in (4, 3, 2, 1):  # as if the one that came late had been the older
        (slurm.folder / f"{job}.json").rename(slurm.folder / f"{job + 1}.json")
    late(slurm, 1, like=2)
    path = tmp_path / "out/pipeline.json"
    text = path.read_text()
    for job in (4, 3, 2, 1):
        text = text.replace(f"torchx/{job}", f"torchx/{job + 1}")
    path.write_text(text)
    assert demo() == 0
    assert [slurm.state(job) for job in range(1, 9)] == ["PENDING", *["CANCELLED by 0"] * 4, *["PENDING"] * 3]
    depends = [word for job in (6, 7, 8) for word in slurm.words(job) if "depend" in word]
    assert depends == ["--dependency=afterok:1", "--dependency=afterok:1", "--dependency=afterok:7"]


def test_a_job_that_came_before_is_the_one_to_wait_for(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The older one comes between the look at the queue and the driver's own submission."""
    scheduler = type(find_scheduler("slurm"))
    submit = scheduler.submit

    def submit_second(self: object, runner: object, job: object) -> str:
        if slurm.count() == 0:
            submit(self, runner, copy.deepcopy(job))
        return submit(self, runner, job)

    monkeypatch.setattr(scheduler, "submit", submit_second)
    assert demo() == 0
    assert [slurm.state(job) for job in range(1, 6)] == ["PENDING", "CANCELLED by 0", *["PENDING"] * 3]
    assert [word for word in slurm.words(3) if "depend" in word] == ["--dependency=afterok:1"]
    assert "pretrain           queued        slurm://torchx/1\n" in capfd.readouterr().out
