"""Which ends of a pod Volcano answers with another start, by its own rules."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("kubernetes", reason="needs the client of Kubernetes, from the extra: test")
pytest.importorskip("kubernetes_validate", reason="needs the extra: test")

from deit_fast.components import deit
from deit_fast.pipelines.schedulers import find_scheduler
from torchx.runner import get_runner

from deit_fast.runtime.exit_status import ExitStatus
from tests.kubernetes.manifests import check_job
from tests.kubernetes.volcano import Job

WORDS = ["--recipe", "demo_pretrain", "--data", "/data/digits", "--out", "/runs/r", "-j", "2x1"]


@pytest.fixture(scope="module")
def manifests() -> list[dict]:
    """The same job as TorchX makes it for retries and for none, as the pipelines submit it."""
    made = []
    with get_runner() as runner:
        for retries in ("20", "0"):
            words = [*WORDS, "--max_retries", retries]
            cfg = {"queue": "default", "validate_spec": False}
            job = runner.dryrun_component(f"{Path(deit.__file__)}:pretrain", words, "kubernetes", cfg)
            find_scheduler("kubernetes").prepare(job, "/runs/r", [])
            made.append(job.request.resource)
    return made


@pytest.mark.filterwarnings("ignore:.*configured with restarts")
@pytest.mark.parametrize("status", [status for status in ExitStatus if status])
def test_volcano_starts_again_what_may_end_better(manifests: list[dict], status: ExitStatus) -> None:
    retried, single = (copy.deepcopy(each) for each in manifests)
    policies = [task.get("policies") for task in retried["spec"]["tasks"]]
    assert policies[0] == policies[1]
    assert "policies" not in single["spec"]["tasks"][0]
    for task in retried["spec"]["tasks"]:
        del task["template"]  # objects of the client, which the rules do not look at
    assert not check_job(retried)
    job = Job(retried, "default", SimpleNamespace(create_pod=lambda pod: False))  # type: ignore[arg-type]
    acts: list[str] = []
    job.act = acts.append  # type: ignore[assignment,method-assign]
    pod = SimpleNamespace(discarded=False, version=0, task="train-1", exit_code=int(status))
    job.handle("PodFailed", pod)  # type: ignore[arg-type]
    assert acts == ["TerminateJob" if status in (2, 3, 65, 71, 130) else "RestartJob"]
    job.handle("PodEvicted", SimpleNamespace(**{**vars(pod), "exit_code": 75}))  # type: ignore[arg-type]
    assert acts[1:] == ["RestartJob"]
