"""Pipelines on a scheduler that is not this machine's: jobs go on without the driver, and answers may fail to come."""

import os
import signal
import threading
from pathlib import Path

import pytest
from deit_fast.pipelines import dag
from deit_fast.pipelines.dag import run_stages
from torchx.runner import Runner
from torchx.schedulers.api import DescribeAppResponse
from torchx.schedulers.local_scheduler import CWDImageProvider, LocalScheduler

from tests.pipelines.conftest import shell, states, wait_for


class Cluster(LocalScheduler):
    """A scheduler for which the pipelines have no module. Asked for a state, it does not answer at first."""

    silences = 5

    def __init__(self, session_name: str, **_: object) -> None:
        super().__init__(session_name, CWDImageProvider)
        self.backend = "cluster"

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        self.silences -= 1
        if self.silences >= 0:
            raise RuntimeError("squeue: error\n  Socket timed out")
        return super().describe(app_id)


class Forgetful(Cluster):
    silences = 0

    def describe(self, app_id: str) -> None:
        return None


def test_a_silent_cluster_is_waited_for(
    tmp_path: Path, component: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stages = [shell(component, "a", "true")]
    with Runner("test", {"cluster": Cluster}) as runner:
        assert run_stages(stages, tmp_path / "out", runner, "cluster", {}, poll_seconds=0.02) == 0
    assert capfd.readouterr().out.count("squeue: error Socket timed out") == 1

    monkeypatch.setattr(dag, "PATIENCE_SECONDS", 0.1)
    with Runner("test", {"cluster": Forgetful}) as runner:
        assert run_stages(stages, tmp_path / "two", runner, "cluster", {}, poll_seconds=0.02) == 1
    assert "LOST" in capfd.readouterr().out


def test_an_interrupt_leaves_a_clusters_jobs(
    tmp_path: Path, component: str, journal: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "begun"
    script = f"touch {begun}; sleep 0.5; echo a >> {journal}"
    stages = [shell(component, "a", script), shell(component, "b", "true", "a")]

    def interrupt() -> None:
        wait_for(begun)
        os.kill(os.getpid(), signal.SIGINT)

    with Runner("test", {"cluster": Cluster}) as runner:
        threading.Thread(target=interrupt).start()
        assert run_stages(stages, tmp_path / "out", runner, "cluster", {}, poll_seconds=0.02) == 130
        wait_for(journal, "a")
    assert "goes on; run this again to follow it, or: torchx cancel cluster://test/" in capfd.readouterr().out
    assert states(tmp_path / "out") == {"a": "running"}
