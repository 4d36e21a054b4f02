"""Trainings on the stand-in for Kubernetes: whatever happens to the pods, the run ends with the same weights."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kubernetes import client

from tests.kubernetes.cluster import NODES, Cluster
from tests.kubernetes.jobs import Job, submit, torchx
from tests.kubernetes.pods import Pod
from tests.runs import check_same

pytestmark = pytest.mark.soak

# Some seconds of training, a checkpoint every second or so.
WORDS = ("schedule.epochs=2", "schedule.warmup_epochs=1", "run.checkpoint_every=10", "run.log_every=10",
         "run.precision=fp32")  # fmt: skip
STEPS = 88
KILLED = 128 + signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> Job:
    """A run that was left alone, but looked at."""
    job = submit(cluster, "undisturbed", *WORDS)
    job.wait_for_checkpoint()
    assert "State: RUNNING" in torchx(cluster, "status", job.handle)
    assert re.search(rf"{job.handle} +RUNNING", torchx(cluster, "list", "-s", "kubernetes"))
    assert "  step 10/88  " in torchx(cluster, "log", f"{job.handle}/train/0")  # as it is written
    assert job.wait() == "Completed", job.log()
    assert job.restarts() == 0
    assert job.step() == STEPS
    return job


def test_torchx_commands(cluster: Cluster, undisturbed: Job) -> None:
    assert "State: SUCCEEDED" in torchx(cluster, "status", undisturbed.handle)
    assert re.search(rf"{undisturbed.handle} +SUCCEEDED", torchx(cluster, "list", "-s", "kubernetes"))
    log = torchx(cluster, "log", undisturbed.handle)
    assert "top-1 " in log
    assert undisturbed.result()["checkpoint"] == "/runs/undisturbed/checkpoints/last.pt"


def evict(job: Job) -> Pod:
    pod = job.running()[0]
    job.evict(pod)
    return pod


def kill_a_pod(job: Job) -> Pod:
    pod = job.running()[1]
    pod.signal(signal.SIGKILL)
    return pod


def kill_a_worker(job: Job) -> Pod:
    """As the kernel does that runs out of memory."""
    pod = job.running()[1]
    children = Path(f"/proc/{pod.first_process()}/task/{pod.first_process()}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    return pod


@pytest.mark.parametrize("disturb", [evict, kill_a_pod, kill_a_worker])
def test_a_disturbed_run_ends_with_the_same_weights(
    cluster: Cluster, undisturbed: Job, disturb: Callable[[Job], Pod]
) -> None:
    job = submit(cluster, disturb.__name__.replace("_", "-"), *WORDS)
    job.wait_for_checkpoint()
    pod = disturb(job)
    assert job.wait() == "Completed", job.log()
    # A new pod may still find the first pod of before, which is ending, and fail with it: one more start.
    assert job.status()["retryCount"] in (1, 2)
    assert job.restarts() >= 1
    assert len(job.pods()) >= 4
    if disturb is evict:
        assert pod.exit_code not in (0, KILLED)
        assert job.log().count("stopped by a signal") >= 2
    check_same(job, undisturbed)


def test_a_lost_node_holds_the_job_until_somebody_deletes_it(cluster: Cluster, undisturbed: Job) -> None:
    job = submit(cluster, "lost-node", *WORDS, "run.hang_timeout=15")
    job.wait_for_checkpoint()
    lost = job.present()[1]
    cluster.lose_node(lost.node)
    job.wait_until(lambda: job.states() == ["Restarting"], 90, "the end of the pod that hangs")
    assert "no sign of life" in job.log()
    time.sleep(2)
    assert job.states() == ["Restarting"]
    client.CoreV1Api(job.api).delete_node(lost.node)
    assert job.wait() == "Completed", job.log()
    cluster.nodes[lost.node] = 0.0
    assert {pod.node for pod in job.pods()[2:]} == {*NODES} - {lost.node}
    check_same(job, undisturbed)


def test_cancelled_and_submitted_again(cluster: Cluster, undisturbed: Job) -> None:
    job = submit(cluster, "cancelled", *WORDS)
    job.wait_for_checkpoint()
    torchx(cluster, "cancel", job.handle)
    assert job.states() == ["gone"]
    job.wait_until(lambda: not job.running(), 30, "the end of the pods")
    assert KILLED not in [pod.exit_code for pod in job.pods()]
    assert job.log().count("stopped by a signal") == 2
    assert job.step() < STEPS
    again = submit(cluster, "cancelled", *WORDS)
    assert again.wait() == "Completed", again.log()
    assert again.restarts() == 1
    check_same(again, undisturbed)


def test_restarts_come_to_an_end(cluster: Cluster) -> None:
    """Volcano counts starts: of three, the third is the last."""
    job = submit(cluster, "exhausted", *WORDS, retries=3)
    for start in (1, 2, 3):
        # Volcano starts a pod again while others still end.
        job.wait_until(lambda: len(job.present()) == 2, 60, f"start {start}")
        victim = job.present()[1]
        job.wait_until(victim.first_process, 10, "its process")
        victim.signal(signal.SIGKILL)
        job.wait_until(lambda: job.status().get("retryCount") == start, 60, f"end {start}")  # noqa: B023
        for pod in job.running():  # a process number 1 that is only starting ignores TERM: not to wait for its grace
            if pod.deleted_at:
                pod.signal(signal.SIGKILL)
    assert job.wait(60) == "Failed"
    assert job.status()["retryCount"] == 3
    assert "State: FAILED" in torchx(cluster, "status", job.handle)
    torchx(cluster, "log", f"{job.handle}/train/1")  # the pod that failed is kept


def test_a_job_without_its_claim_waits(cluster: Cluster) -> None:
    job = submit(cluster, "waiting", mounts="type=volume,src=absent,dst=/data")
    job.wait_until(lambda: job.states() == ["Pending"] and len(job.pods()) == 2, 20, "its pods")
    assert "State: PENDING" in torchx(cluster, "status", job.handle)
    torchx(cluster, "cancel", job.handle)
    job.wait_until(lambda: not set(job.pods()) & set(cluster.pods.values()), 20, "the end of its pods")


def test_the_data_are_read_only(cluster: Cluster) -> None:
    job = submit(cluster, "refused", retries=1, within="/data")
    # Of the two pods Volcano keeps the one that failed first, so the line is looked for while both are there.
    job.wait_until(lambda: "Read-only file system" in job.log(), 90, "the refusal")
    assert job.wait(90) == "Failed"
