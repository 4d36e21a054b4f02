"""Trainings in a queue of Kueue on the stand-in: preempted twice, on a node that vanishes, the weights are the same."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kubernetes import client, config

from tests.conftest import ROOT
from tests.kubernetes.cluster import NAMESPACE, NODES, Cluster
from tests.kubernetes.jobs import MOUNTS, torchx
from tests.kubernetes.jobset import JobSet
from tests.kubernetes.kueue import Workload
from tests.kubernetes.pods import Pod
from tests.kubernetes.test_training import WORDS
from tests.runs import COMPONENTS, Run, check_same

pytestmark = pytest.mark.soak

CFG = f"namespace={NAMESPACE},queue=gpus,service_account=trainer"


@dataclass
class Training(Run):
    """Two pods, one process each."""

    cluster: Cluster
    out: Path
    handle: str

    @property
    def name(self) -> str:
        return self.handle.rpartition(":")[2]

    @property
    def jobset(self) -> JobSet:
        return self.cluster.jobsets[NAMESPACE, self.name]

    @property
    def workload(self) -> Workload:
        job = self.cluster.train_jobs.get((NAMESPACE, self.name), self.jobset)
        return next(each for each in self.cluster.kueue.workloads if each.job is job)

    def pods(self) -> list[Pod]:
        with self.cluster.lock:
            every = [*self.cluster.past, *self.cluster.pods.values()]
        label = "jobset.sigs.k8s.io/jobset-name"
        return [pod for pod in every if pod.manifest["metadata"]["labels"].get(label) == self.name]

    def states(self) -> list[str]:
        return [str(self.jobset.end), str(self.jobset.failing)]

    def log(self) -> str:
        return b"".join(pod.log() for pod in self.pods()).decode()

    def preempt(self) -> None:
        with self.cluster.lock:
            self.cluster.kueue.preempt(self.workload.job)

    def finish(self, seconds: float = 240) -> None:
        self.wait_until(lambda: self.jobset.end, seconds, "its end")
        assert self.jobset.end is not None
        assert self.jobset.end[0] == "Completed", self.log()


def submit(cluster: Cluster, name: str, *words: str, kind: str = "jobset") -> Training:
    printed = torchx(
        cluster, "run", "-s", "kueue", "-cfg", f"{CFG},kind={kind}", f"{COMPONENTS}:pretrain",
        "--recipe", "demo_pretrain", "--data", "/data/digits", "--out", f"/runs/{name}", "-j", "2x1", "-h", "cpu_small",
        "--mounts", MOUNTS, *WORDS, *words,
    )  # fmt: skip
    return Training(cluster, cluster.claims["runs"] / name, re.findall(r"kueue://\S+", printed)[0])


@pytest.fixture(autouse=True)
def nodes(cluster: Cluster) -> Iterator[None]:
    yield
    with cluster.lock:
        cluster.nodes.update(dict.fromkeys(NODES, 0.0))


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> Training:
    job = submit(cluster, "kueue-undisturbed")
    job.wait_for_checkpoint()
    assert "State: RUNNING" in torchx(cluster, "status", job.handle)
    job.finish()
    assert "State: SUCCEEDED" in torchx(cluster, "status", job.handle)
    assert re.search(rf"{job.handle} +SUCCEEDED", torchx(cluster, "list", "-s", "kueue"))
    assert "top-1 " in torchx(cluster, "log", f"{job.handle}/train/0")
    assert job.restarts() == 0
    return job


@pytest.mark.parametrize("kind", ["jobset", "trainjob"])
def test_preempted_twice(cluster: Cluster, undisturbed: Training, kind: str) -> None:
    job = submit(cluster, f"preempted-{kind}", kind=kind)
    for time in (1, 2):
        step = job.step()
        job.wait_for_checkpoint()
        job.wait_until(lambda: job.step() > step + 10, 90, f"some steps of start {time}")  # noqa: B023
        job.preempt()
        job.wait_until(lambda: len(job.pods()) == 2 * time + 2, 60, f"the pods after preemption {time}")  # noqa: B023
    job.finish()
    assert job.workload.preemptions == 2
    assert [pod.exit_code for pod in job.pods()] == [75, 75, 75, 75, 0, 0]
    assert (job.jobset.restarts, job.restarts()) == (0, 2)
    check_same(job, undisturbed)


def test_a_node_vanishes(cluster: Cluster, undisturbed: Training) -> None:
    job = submit(cluster, "vanished", "run.hang_timeout=15")
    job.wait_for_checkpoint()
    (lost,) = (pod for pod in job.pods() if pod.index == 1)
    cluster.lose_node(lost.node)
    job.wait_until(lambda: job.jobset.failing, 90, "the end of the pod that hangs")
    assert "no sign of life" in job.log()
    assert (job.jobset.restarts, len(job.pods()), lost.phase) == (0, 2, "Running")
    api = client.CoreV1Api(config.new_client_from_config(str(cluster.kubeconfig)))
    api.delete_node(lost.node)
    job.finish()
    cluster.nodes[lost.node] = 0.0
    assert (job.jobset.counted, job.restarts()) == (1, 1)
    check_same(job, undisturbed)


def test_a_pipeline_in_a_queue(cluster: Cluster, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-u", "-m", "pipelines.deit3", "--size", "demo", "--scheduler", "kueue", "--cfg", CFG),
        *("--data", "/data/digits", "--out", "/runs/queued", "--state", str(tmp_path), "--mounts", MOUNTS),
        *("-h", "cpu_small", *WORDS),
    ]
    environment = cluster.image | {"KUBECONFIG": str(cluster.kubeconfig)}
    driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    started = driver.stdout.readline()
    assert "started       kueue://torchx/research:demo-pretrain-" in started
    driver.kill()
    driver.wait()
    (tmp_path / "pipeline.json").unlink(missing_ok=True)  # as if it had been killed before it could write that
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"still there   {started.split()[-1]}" in done.stdout
    assert done.stdout.count("done  ") == 4
    assert "| evaluate_finetune |" in done.stdout
