"""The demo pipeline on the stand-in for Kubernetes, from a failure over a killed driver and a cancelled job to the end.

/runs and /data are the pods' alone: the driver sees no file of theirs.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.kubernetes.cluster import NAMESPACE, Cluster
from tests.kubernetes.jobs import CFG, MOUNTS, torchx
from tests.kubernetes.test_training import WORDS

pytestmark = pytest.mark.soak

STAGES = ["pretrain", "evaluate_pretrain", "finetune", "evaluate_finetune"]


def start(cluster: Cluster, state: Path, retries: int = 3) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-u", "-m", "pipelines.deit3", "--size", "demo", "--scheduler", "kubernetes", "--cfg", CFG),
        *("--data", "/data/pipeline", "--out", "/runs/pipeline", "--state", str(state), "--mounts", MOUNTS),
        *("-h", "cpu_small", "--max_retries", str(retries), *WORDS),
    ]
    environment = cluster.image | {"KUBECONFIG": str(cluster.kubeconfig)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(driver: subprocess.Popen[str], status: int, seconds: float = 400) -> str:
    printed, _ = driver.communicate(timeout=seconds)
    assert driver.returncode == status, printed
    assert "Traceback" not in printed
    return printed


def handles(printed: str) -> list[str]:
    return [word.rstrip(",:") for word in printed.split() if word.startswith("kubernetes://")]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.2)


def test_a_pipeline_fails_is_cancelled_continues_and_ends(cluster: Cluster, tmp_path: Path) -> None:
    seen: set[tuple[str, str]] = set(cluster.jobs)
    printed = finish(start(cluster, tmp_path, retries=0), 1)
    assert "FAILED" in printed
    assert "    deit-fast: rank 0: /data/pipeline: " in printed, printed  # the end of its log
    assert not re.search(r"^ *(b'|\d{4}-\d\d-\d\dT)", printed, re.MULTILINE), printed
    assert printed.count("not started") == 3
    assert len(cluster.jobs.keys() - seen) == 1
    seen |= cluster.jobs.keys()

    (cluster.claims["imagenet"] / "pipeline").symlink_to("digits")
    driver = start(cluster, tmp_path)
    wait_for(cluster.claims["runs"] / "pipeline" / "pretrain" / "checkpoints" / "last.pt")
    driver.kill()
    (job,) = handles(driver.communicate()[0])
    (tmp_path / "pipeline.json").unlink()  # as if it had been killed before it could write that
    driver = start(cluster, tmp_path)
    assert driver.stdout is not None
    assert f"still there   {job}" in driver.stdout.readline()
    torchx(cluster, "cancel", job)
    printed = finish(driver, 1)
    assert "CANCELLED" in printed
    gone = f'no log of node 0: Kubernetes: pods "{job.rpartition(":")[2]}-train-0-0" not found'
    ending = re.search(r"^ +epoch .* step ", printed, re.MULTILINE)  # the log of a pod that has not quite ended
    assert gone in printed or ending, printed
    assert cluster.jobs.keys() <= seen

    printed = finish(start(cluster, tmp_path), 0)
    assert [line.split()[1] for line in printed.splitlines() if "started" in line] == STAGES
    assert printed.count("done  ") == 4
    assert "| evaluate_finetune |" in printed
    created = {(NAMESPACE, handle.rpartition(":")[2]) for handle in handles(printed)}
    assert cluster.jobs.keys() == seen | created
    assert len(created) == 4
    names = tuple(name for _, name in created)  # other tests' jobs may be on the same cluster
    resumed = [pod for pod in cluster.pods.values() if pod.name.startswith(names) and b"resumed from" in pod.log()]
    assert len(resumed) == 1
    assert finish(start(cluster, tmp_path), 0).count("done before") == 4
    assert cluster.jobs.keys() == seen | created
