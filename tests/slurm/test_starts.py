"""Several starts of a job on a real Slurm: each leaves its log, and the nodes meet although a port is taken."""

import socket
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.jobs import closed, submit
from tests.slurm.test_pipeline import run
from tests.slurm.test_slurm import WORDS

pytestmark = pytest.mark.slurm


def port(job: str, restarts: int) -> int:
    """Where the nodes of a job meet: cksum is POSIX's, over the id and the number of restarts."""
    printed = subprocess.run(["cksum"], input=f"{job}-{restarts}", capture_output=True, text=True, check=True).stdout
    return 20000 + int(printed.split()[0]) % 10000


def test_a_foreign_listener_costs_a_start_and_the_log_of_each_stays(
    cluster: Cluster, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cluster.environment, "SBATCH_OPEN_MODE", "append")
    with socket.socket() as foreign:
        with closed(cluster):
            job = submit(cluster, digits, tmp_path / "run", *WORDS)
            foreign.bind(("0.0.0.0", port(job.id, 0)))
            foreign.listen()
        taken = f"deit-fast: n1:{port(job.id, 0)}: expected a free port for the nodes to meet at"
        job.wait_until(lambda: taken in job.log(), 120, "the line about the port")
        job.wait_until(lambda: "PENDING" in job.states(), 60, "the job in the queue again")
        job.wait_for_start()
        job.wait_for_checkpoint()
        assert job.log().count("Slurm's restart 1 of this job") == 2  # of each node
    job.cluster.run("scontrol", "requeue", job.id)
    assert job.wait() == ["COMPLETED", "COMPLETED"], job.log()
    log = job.log()
    assert taken in log
    assert log.count("Slurm's restart 2 of this job") == 2
    assert log.index("Slurm's restart 1") < log.index("resumed from") < log.rindex("top-1 ")


def test_sbatchs_reason_is_in_the_line(cluster: Cluster, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "digits").symlink_to(digits)
    printed = run(cluster, tmp_path, "--cfg", "partition=absent", status=1)
    assert "could not start: sbatch: error: invalid partition specified: absent" in printed
    assert "Traceback" not in printed
