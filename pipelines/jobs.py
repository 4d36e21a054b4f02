"""Jobs of any scheduler: what TorchX leaves to be asked of Slurm and of Kubernetes itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from torchx.runner import Runner
from torchx.specs import AppDryRunInfo, AppState, CfgVal

from . import slurm, volcano


def prepare_job(scheduler: str, job: AppDryRunInfo[Any], output: str, after: Sequence[str]) -> None:
    """Writes into a job what it makes, for `find_jobs`; one of Slurm waits for the jobs with the handles `after`."""
    if scheduler == "slurm":
        slurm.order_job(job, output, after)
    elif scheduler == "kubernetes":
        volcano.mark_job(job, output)


def find_jobs(scheduler: str, cfg: Mapping[str, CfgVal]) -> dict[str, str]:
    """Handles of a cluster's waiting and running jobs, by what they make. Raises PipelineError without an answer."""
    if scheduler == "slurm":
        return slurm.find_jobs()
    return volcano.find_jobs(str(cfg.get("namespace") or "default")) if scheduler == "kubernetes" else {}


def job_state(runner: Runner, handle: str) -> AppState | None:
    """The state of a job, None for an unknown one. Raises whatever the scheduler's client raises without an answer."""
    if handle.startswith("slurm:"):
        return slurm.job_state(handle)
    if handle.startswith("kubernetes:"):
        return volcano.job_state(handle)
    status = runner.status(handle)
    return status.state if status else None
