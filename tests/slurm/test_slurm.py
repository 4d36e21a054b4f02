"""Trainings on a real Slurm: whatever happens to the jobs, the run ends with the weights of the undisturbed one."""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import check_same
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import Job, find_trainers, submit, torchx

pytestmark = pytest.mark.slurm

# Some fifteen seconds of training, a checkpoint every second or so.
WORDS = ("schedule.epochs=4", "schedule.warmup_epochs=1", "run.checkpoint_every=10", "run.log_every=10",
         "run.eval_every=3", "run.precision=fp32")  # fmt: skip
STEPS = 176


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = submit(cluster, digits, tmp_path_factory.mktemp("undisturbed") / "run", *WORDS)
    assert job.wait() == ["COMPLETED", "COMPLETED"], job.log()
    assert job.restarts() == 0
    assert job.step() == STEPS
    return job


def test_torchx_commands(cluster: Cluster, undisturbed: Job) -> None:
    folder = undisturbed.out.parent
    assert "SUCCEEDED" in torchx(cluster, "status", undisturbed.handle, cwd=folder)
    assert undisturbed.handle in torchx(cluster, "list", "-s", "slurm", cwd=folder)
    assert "top-1" in torchx(cluster, "log", "--streams", "stdout", undisturbed.handle, cwd=folder)
    assert "rank0" in undisturbed.log()


def test_cancelled_and_submitted_again(cluster: Cluster, digits: Path, undisturbed: Job, tmp_path: Path) -> None:
    job = submit(cluster, digits, tmp_path / "run", *WORDS)
    job.wait_for_checkpoint()
    torchx(cluster, "cancel", job.handle, cwd=tmp_path)
    assert set(job.wait()) <= {"CANCELLED", "FAILED"}
    assert job.step() < STEPS
    again = submit(cluster, digits, tmp_path / "run", *WORDS)
    assert again.wait() == ["COMPLETED", "COMPLETED"], again.log()
    assert again.restarts() == 1
    check_same(again, undisturbed)


def requeue(job: Job) -> None:
    job.cluster.run("scontrol", "requeue", job.id)


def preempt(job: Job) -> None:
    """A job of the higher partition needs both nodes whole."""
    job.cluster.run("srun", "-p", "high", "-N2", "--exclusive", "sleep", "1", timeout=120)


def kill_a_worker(job: Job) -> None:
    os.kill(find_trainers(job)[-1], signal.SIGKILL)


def kill_a_node(job: Job) -> None:
    job.cluster.kill_node("n2")
    job.wait_until(lambda: "down" in job.cluster.run("sinfo", "-h", "-N", "-o", "%T"), 90, "Slurm's notice of the loss")
    job.cluster.start_node("n2")


@pytest.mark.parametrize("disturb", [requeue, preempt, kill_a_worker, kill_a_node])
def test_a_disturbed_run_ends_with_the_same_weights(
    cluster: Cluster, digits: Path, undisturbed: Job, tmp_path: Path, disturb: Callable[[Job], None]
) -> None:
    job = submit(cluster, digits, tmp_path / "run", *WORDS)
    job.wait_for_checkpoint()
    disturb(job)
    states = job.wait(240)
    cluster.wait_for(cluster.is_idle, 60, "idle nodes")
    assert states == ["COMPLETED", "COMPLETED"], job.log()
    assert job.restarts() >= 1
    check_same(job, undisturbed)
    assert not find_trainers(job)


def test_a_worker_that_hangs_ends_the_attempt_and_the_next_goes_on(
    cluster: Cluster, digits: Path, undisturbed: Job, tmp_path: Path
) -> None:
    job = submit(cluster, digits, tmp_path / "run", *WORDS, "run.hang_timeout=20")
    job.wait_for_checkpoint()
    stopped = time.monotonic()
    os.kill(find_trainers(job)[-1], signal.SIGSTOP)
    job.wait_until(lambda: "no sign of life" in job.log(), 35, "the watchdog's line")
    assert time.monotonic() - stopped > 19
    job.wait_until(lambda: "PENDING" in job.states(), 60, "the job in the queue again")
    assert not find_trainers(job)
    accounting = cluster.run("sacct", "-D", "-n", "-P", "-j", job.id, "-o", "JobID,State").splitlines()
    assert f"{job.id}+0|REQUEUED" in accounting
    assert f"{job.id}+0.batch|FAILED" in accounting  # its exit status was not 0
    lines = re.findall(r"deit-fast: rank (\d): no sign of life for .*", job.log())
    assert lines, job.log()
    assert len(lines) == len(set(lines)), "a line of a process came twice"
    assert job.wait() == ["COMPLETED", "COMPLETED"], job.log()
    # Hurried, the next attempt seems to meet a signal meant for this one at times; Slurm's two minutes come between.
    assert job.restarts() >= 1
    check_same(job, undisturbed)
    assert not find_trainers(job)


def test_a_time_limit_ends_in_a_checkpoint_and_a_requeue(
    cluster: Cluster, digits: Path, undisturbed: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cluster.environment, "SBATCH_SIGNAL", "USR1@30")
    job = submit(cluster, digits, tmp_path / "run", *WORDS, cfg="partition=main,time=60")
    job.wait_for_checkpoint()
    # Slurm looks at time limits every half minute. Till then the workers stand still, or they would be done; its signal
    # comes with a CONT.
    for pid in find_trainers(job):
        os.kill(pid, signal.SIGSTOP)
    job.update(f"TimeLimit={1 + (job.seconds() + 30) // 60}")
    job.wait_until(lambda: job.log().count("stopped by a signal"), 90, "the end before the limit")
    job.wait_until(lambda: "PENDING" in job.states(), 30, "the job in the queue again")
    job.update("TimeLimit=60")
    assert job.wait() == ["COMPLETED", "COMPLETED"], job.log()
    assert job.restarts() == 1
    assert "TIMEOUT" not in cluster.run("sacct", "-D", "-n", "-j", job.id, "-o", "State")
    check_same(job, undisturbed)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (2, []),
        (3, ["optim.name=sgd", "optim.lr=1e30", "optim.max_grad_norm=null", "run.nonfinite_limit=3"]),
        (65, ["data.max_bad=0"]),
    ],
)
def test_an_end_that_no_start_mends_ends_the_job(
    cluster: Cluster, digits: Path, tmp_path: Path, status: int, words: list[str]
) -> None:
    data = shutil.copytree(digits, tmp_path / "digits")
    if status == 65:
        for image in list((data / "train" / "0").iterdir())[:20]:
            image.write_bytes(b"no image")
    # A folder of which the submitting machine knows nothing may be the nodes' own.
    job = submit(cluster, data if words else Path("/absent/digits"), tmp_path / "run", *WORDS, *words)
    states = job.wait()
    assert states == ["FAILED", "FAILED"], job.log()
    assert re.search(rf"deit-fast: rank \d ended the run with status {status} \([a-z ]+\): no other start", job.log())
    assert "Slurm may start the job again" not in job.log()
    accounting = cluster.run("sacct", "-D", "-X", "-n", "-P", "-j", job.id, "-o", "State").split()
    assert accounting == ["FAILED", "FAILED"]  # one attempt, which Slurm did not requeue
