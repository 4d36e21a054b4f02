"""The common part of the schedulers of a Kubernetes cluster."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torchx.runner import Runner
from torchx.specs import AppDryRunInfo, AppState, CfgVal, is_terminal

from ..state import PipelineError, explain
from . import Scheduler

_MARK = "deit-fast/output"


class ClusterScheduler(Scheduler):
    missing = AppState.CANCELLED  # a cancelled job does not exist any more

    @abstractmethod
    def list_jobs(self, namespace: str) -> Iterable[tuple[dict[str, Any], AppState]]:
        """The jobs of a namespace, oldest first: the API's objects, and their states."""

    def prepare(self, job: AppDryRunInfo[Any], output: str, after: Sequence[str]) -> None:
        """Labels the job with its output."""
        job.request.resource["metadata"].setdefault("annotations", {})[_MARK] = output

    def find(self, cfg: Mapping[str, CfgVal]) -> dict[str, list[str]]:
        """The jobs of the namespace in `cfg`. Raises PipelineError where Kubernetes does not answer."""
        namespace = str(cfg.get("namespace") or "default")
        try:
            jobs = list(self.list_jobs(namespace))
        except Exception as error:  # the client may be missing, and may raise anything
            raise PipelineError(f"Kubernetes: {explain(error)}") from error
        found: dict[str, list[str]] = {}
        for resource, state in jobs:
            output = (resource["metadata"].get("annotations") or {}).get(_MARK)
            if output and not is_terminal(state):
                name = resource["metadata"]["name"]
                found.setdefault(output, []).append(f"{self.name}://torchx/{namespace}:{name}")
        return found

    @property
    def name(self) -> str:
        """TorchX's name of the scheduler, which is the name of its module."""
        return type(self).__module__.rpartition(".")[2]

    def cancel(self, runner: Runner, handle: str) -> None:
        try:
            super().cancel(runner, handle)
        except Exception as error:
            raise PipelineError(f"{handle}: {explain(error)}") from error


def split_handle(handle: str) -> tuple[str, str]:
    """The namespace and the name of a job, from its handle."""
    namespace, _, name = handle.rpartition("/")[2].partition(":")
    return namespace, name
