"""The demo pipeline in the queue of a real Slurm, from a failure to the report."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import Job, closed, find_trainers

pytestmark = pytest.mark.slurm

STAGES = ["pretrain", "evaluate_pretrain", "finetune", "evaluate_finetune"]
WORDS = ["schedule.epochs=2", "schedule.warmup_epochs=1", "run.checkpoint_every=5", "run.log_every=5"]


def start(cluster: Cluster, folder: Path, *words: str, path: str = "") -> subprocess.Popen[str]:
    """The driver; `path` is its PATH, empty for the cluster's."""
    command = [
        *(sys.executable, "-m", "pipelines.deit3", "--size", "demo", "--scheduler", "slurm"),
        *("--cfg", "partition=main", "--data", str(folder / "digits"), "--out", str(folder / "out")),
        *("--cpu", "1", "--memMB", "4000", *words, *WORDS),
    ]
    modules = os.pathsep.join([str(ROOT), cluster.environment.get("PYTHONPATH", "")])
    environment = {**cluster.environment, "PYTHONPATH": modules, "OMP_NUM_THREADS": "1"}
    environment["PATH"] = path or environment["PATH"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def run(cluster: Cluster, folder: Path, *words: str, status: int = 0) -> str:
    driver = start(cluster, folder, *words)
    printed, errors = driver.communicate(timeout=300)
    assert driver.returncode == status, printed + errors
    return printed


def handles(printed: str) -> list[str]:
    return [word.rstrip(",:") for word in printed.split() if word.startswith("slurm://")]


def ask(cluster: Cluster, jobs: list[str], field: str) -> list[str]:
    """A field of each job."""
    words = ("sacct", "-X", "-n", "-P", "-o", field, "-j")
    return [cluster.run(*words, handle.rpartition("/")[2]).split()[0] for handle in jobs]


def test_a_driver_killed_in_a_slow_sbatch(cluster: Cluster, digits: Path, tmp_path: Path) -> None:
    """Its sbatch submits all the same, later; the next driver waits for that, or cancels the younger of two jobs."""
    (tmp_path / "digits").symlink_to(digits)
    (tmp_path / "bin").mkdir()
    slow = tmp_path / "bin" / "sbatch"
    slow.write_text(f'#!/bin/bash\ntouch {tmp_path}/begun\nsleep 8\nexec $(PATH=${{PATH#*:}} which sbatch) "$@"\n')
    slow.chmod(0o755)
    with closed(cluster):
        driver = start(cluster, tmp_path, path=f"{slow.parent}:{cluster.environment['PATH']}")
        cluster.wait_for((tmp_path / "begun").exists, 60, "sbatch")
        driver.kill()
        driver.wait()
        printed = run(cluster, tmp_path)
        jobs = handles(printed)
        assert f"still there   {jobs[0]}" in printed
        assert cluster.run("squeue", "-h").count("\n") == 4
        double = cluster.run(
            "sbatch", "--parsable", f"--comment=deit-fast:{tmp_path}/out/pretrain", "--wrap", "sleep 99"
        ).strip()
        assert f"cancelled     slurm://torchx/{double}: {jobs[0]}, which is older" in run(cluster, tmp_path)
        assert ask(cluster, [f"slurm://torchx/{double}"], "State") == ["CANCELLED"]
        assert handles(run(cluster, tmp_path)) == jobs
        depends = [cluster.run("squeue", "-h", "-j", job.rpartition("/")[2], "-o", "%E") for job in jobs[1:3]]
        assert all(f"afterok:{jobs[0].rpartition('/')[2]}" in each for each in depends), depends
        cluster.run("scancel", *[job.rpartition("/")[2] for job in jobs])


def test_a_pipeline_fails_continues_and_ends(cluster: Cluster, digits: Path, tmp_path: Path) -> None:
    with closed(cluster):
        (tmp_path / "digits").symlink_to(digits)
        printed = run(cluster, tmp_path, "--max_retries", "0")
        (tmp_path / "digits").unlink()
    failing = handles(printed)
    assert len(set(failing)) == 4
    assert "queued        slurm://" in printed
    assert cluster.run("squeue", "-h").count("\n") == 4  # and the driver has left
    cluster.wait_for(lambda: not cluster.run("squeue", "-h"), 120, "the failure of pretrain and the end of the others")
    assert ask(cluster, failing, "State") == ["FAILED", "CANCELLED", "CANCELLED", "CANCELLED"]

    (tmp_path / "digits").symlink_to(digits)
    printed = run(cluster, tmp_path, "--max_retries", "5")
    assert "FAILED" in printed
    assert f"{tmp_path / 'digits'}: " in printed  # the end of its log
    assert [line.split()[1] for line in printed.splitlines() if "attempt 2" in line] == STAGES
    jobs = [handle for handle in handles(printed) if handle not in failing]

    assert handles(run(cluster, tmp_path)) == jobs
    (tmp_path / "out" / "pipeline.json").unlink()  # as if the driver had been killed before it could write it
    assert handles(run(cluster, tmp_path)) == jobs

    pretraining = Job(cluster, tmp_path / "out" / "pretrain", jobs[0])
    pretraining.wait_for_checkpoint()
    os.kill(find_trainers(pretraining)[-1], signal.SIGKILL)
    cluster.wait_for(lambda: ask(cluster, jobs[:1], "State") == ["PENDING"], 60, "pretrain in the queue again")
    time.sleep(3)  # a few rounds of the scheduler
    assert ask(cluster, jobs, "State") == ["PENDING"] * 4
    cluster.run("scontrol", "update", f"jobid={pretraining.id}", "StartTime=now")

    printed = run(cluster, tmp_path, "--watch")
    assert printed.count("done  ") == 4
    assert "| evaluate_finetune |" in printed
    assert ask(cluster, jobs, "State") == ["COMPLETED"] * 4
    start, end = (ask(cluster, jobs[1:3], field) for field in ("Start", "End"))
    first, _, second = (tmp_path / f"slurm-{pretraining.id}-train-0.err").read_text().partition("Slurm's restart 1 of")
    assert "was ended by SIGKILL" in first
    assert second
    assert max(start) < min(end)  # pretrain's evaluation and the finetuning run at once
    assert run(cluster, tmp_path).count("done before") == 4
    assert not cluster.run("squeue", "-h")
