"""Jobs of the TorchX components on the test cluster: submitted, watched, disturbed."""

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from tests.conftest import ROOT
from tests.runs import COMPONENTS, Run, run_torchx
from tests.slurm.cluster import Cluster

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


@dataclass
class Job(Run):
    """A training on two nodes, one process each."""

    cluster: Cluster
    out: Path
    handle: str

    @property
    def id(self) -> str:
        return self.handle.rpartition("/")[2]

    def states(self) -> list[str]:
        """The state of each node's part in the accounting database."""
        lines = self.cluster.run("sacct", "-X", "-n", "-P", "-j", self.id, "-o", "State").split("\n")
        return [line.split(" ")[0] for line in lines if line]

    def seconds(self) -> int:
        """How long the job has been running, seconds."""
        clock = [
            int(part) for part in self.cluster.run("squeue", "-h", "-j", self.id, "-o", "%M").split()[0].split(":")
        ]
        return clock[-1] + 60 * clock[-2]

    def update(self, *words: str) -> None:
        """Changes every part of the job."""
        for part in self.cluster.run("squeue", "-h", "-j", self.id, "-o", "%A").split():
            self.cluster.run("scontrol", "update", f"jobid={part}", *words)

    def hurry(self) -> None:
        """Starts a requeued job before Slurm's delay of two minutes ends.

        Not within the second of its requeue: the nodes refuse such a start ("Job credential revoked"), and the job
        fails.
        """
        queued = self.cluster.run("squeue", "-h", "-t", "PENDING", "-j", self.id, "-o", "%i %V", check=False)
        for line in queued.splitlines():
            part, since = line.split()
            if datetime.now() - datetime.fromisoformat(since) > timedelta(seconds=2):
                self.cluster.run("scontrol", "update", f"jobid={part}", "StartTime=now", check=False)

    def wait_for_start(self, seconds: float = 60) -> None:
        """Waits until every part of a requeued job runs, which is started early instead of after two minutes."""

        def runs() -> bool:
            self.hurry()
            return set(self.states()) == {"RUNNING"}

        self.wait_until(runs, seconds, "the job's next start")

    def wait(self, seconds: float = 180) -> list[str]:
        """Waits for the job's end; returns its states. A requeued job is started early instead of after two minutes."""
        quiet_since = time.monotonic()

        def ended() -> bool:
            nonlocal quiet_since
            self.hurry()
            states = self.states()
            if not states or not set(states) <= ENDED or self.cluster.run("squeue", "-h", "-j", self.id, check=False):
                quiet_since = time.monotonic()
            # Slurm takes a moment to requeue a failed job.
            return time.monotonic() - quiet_since > (0 if set(states) == {"COMPLETED"} else 10)

        self.wait_until(ended, seconds, "the job's end")
        return self.states()

    def log(self) -> str:
        """The processes' output of all attempts."""
        return "".join(path.read_text() for path in sorted(self.out.parent.glob(f"slurm-{self.id}*")))


def torchx(cluster: Cluster, *words: str, cwd: Path) -> str:
    path = os.pathsep.join([cluster.environment.get("PYTHONPATH", ""), str(ROOT)])
    environment = {**cluster.environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return run_torchx(*words, cwd=cwd, environment=environment)


def submit(cluster: Cluster, data: Path, out: Path, *words: str, cfg: str = "partition=main", nodes: int = 2) -> Job:
    out.parent.mkdir(parents=True, exist_ok=True)
    where: Sequence[str] = ("-j", f"{nodes}x1", "--cpu", "1", "--memMB", "4000", "--max_retries", "5")
    printed = torchx(
        cluster, "run", "-s", "slurm", "-cfg", cfg, f"{COMPONENTS}:pretrain", "--recipe", "demo_pretrain",
        "--data", str(data), "--out", str(out), *where, *words, cwd=out.parent,
    )  # fmt: skip
    return Job(cluster, out, re.findall(r"slurm://\S+", printed)[0])


@contextlib.contextmanager
def closed(cluster: Cluster) -> Iterator[None]:
    """While the block runs, submitted jobs wait."""
    cluster.run("scontrol", "update", "partitionname=main", "state=down")
    try:
        yield
    finally:
        cluster.run("scontrol", "update", "partitionname=main", "state=up")


def find_trainers(job: Job) -> list[int]:
    """The training processes of the job, in the order of their start."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        launcher = any(word.endswith(b"torchrun") for word in words)
        if b"deit_fast.cli" in words and os.fsencode(job.out) in words and not launcher:
            found.append(int(process.name))
    return sorted(found)
