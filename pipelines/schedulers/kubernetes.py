"""Kubernetes, with Volcano's jobs.

TorchX 0.7.0 fails on a job that is gone, and on a phase it has no name for.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torchx.runner import Runner
from torchx.schedulers.api import Stream
from torchx.specs import AppDryRunInfo, AppState, CfgVal, is_terminal
from torchx.util.strings import normalize_str

from deit_fast.runtime.exit_status import ExitStatus

from ..state import PipelineError, explain
from . import Scheduler

FOLLOW_SECONDS = 5.0  # between two attempts at the log of a pod
_MARK = "deit-fast/output"
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*Z) ?")
_VOLCANO = {"group": "batch.volcano.sh", "version": "v1alpha1", "plural": "jobs"}
_STATES = {
    "Pending": AppState.PENDING,
    "Completed": AppState.SUCCEEDED,
    "Failed": AppState.FAILED,
    "Terminated": AppState.FAILED,
    "Aborted": AppState.CANCELLED,
}  # and on the way from one to another: Running, Restarting, Completing, ...


class Kubernetes(Scheduler):
    """Its client is imported where it is used, since few have it."""

    missing = AppState.CANCELLED  # a job that was cancelled is no more
    # Nightlies of TorchX ask the API server even for a dry run, and drop what it answers. A submission tells it all.
    defaults = MappingProxyType({"validate_spec": False})

    def prepare(self, job: AppDryRunInfo[Any], output: str, after: Sequence[str]) -> None:
        """Names what the job makes, and lets Volcano end the job at a pod's status that no start mends.

        Volcano takes the first policy that fits. TorchX has one for all failures, which starts the job again.
        """
        job.request.resource["metadata"].setdefault("annotations", {})[_MARK] = output
        final = [{"exitCode": int(status), "action": "TerminateJob"} for status in ExitStatus if status.final]
        for task in job.request.resource["spec"]["tasks"]:
            if "policies" in task:  # a list that TorchX shares between all jobs
                task["policies"] = [*final, *task["policies"]]

    def find(self, cfg: Mapping[str, CfgVal]) -> dict[str, list[str]]:
        """Those of the namespace in `cfg`. Raises PipelineError where Kubernetes does not answer."""
        namespace = str(cfg.get("namespace") or "default")
        try:
            jobs = _api().list_namespaced_custom_object(**_VOLCANO, namespace=namespace)["items"]
        except Exception as error:  # of a client that may be missing, for an API that may be anywhere
            raise PipelineError(f"Kubernetes: {explain(error)}") from error
        found: dict[str, list[str]] = {}
        for job in sorted(jobs, key=lambda job: str(job["metadata"].get("creationTimestamp"))):
            output = (job["metadata"].get("annotations") or {}).get(_MARK)
            if output and not is_terminal(_state(job)):
                found.setdefault(output, []).append(f"kubernetes://torchx/{namespace}:{job['metadata']['name']}")
        return found

    def state(self, runner: Runner, handle: str) -> AppState | None:
        namespace, name = _split_handle(handle)
        try:
            return _state(_api().get_namespaced_custom_object(**_VOLCANO, namespace=namespace, name=name))
        except Exception as error:
            if getattr(error, "status", None) == 404:
                return None
            raise

    def cancel(self, runner: Runner, handle: str) -> None:
        try:
            super().cancel(runner, handle)
        except Exception as error:
            raise PipelineError(f"{handle}: {explain(error)}") from error

    def log(self, runner: Runner, handle: str, role: str, replica: int) -> Iterable[str]:
        """The lines a pod printed so far.

        Clients before 37 give the printed form of the bytes, in one line, for the text that TorchX asks for.
        """
        from kubernetes import client

        namespace, name = _split_handle(handle)
        pod = normalize_str(f"{name}-{role}-{replica}-0")
        api = client.CoreV1Api(_connect())
        answer: Any = api.read_namespaced_pod_log(pod, namespace, timestamps=True, _preload_content=False)
        return (_split_time(line)[1] for line in answer.data.decode(errors="replace").splitlines())

    def follow(
        self, runner: Runner, handle: str, role: str, stream: Stream | None, ended: Callable[[], bool]
    ) -> Iterable[str]:
        """A log is there once the pod has started and ends with the pod; a job that restarts has another."""
        last = ""
        while True:
            seen, over = last, ended()  # before it is read: there may be more
            with contextlib.suppress(Exception):  # no pod yet, or none any more
                for line in super().follow(runner, handle, role, stream, ended):
                    last, text = _split_time(line)
                    if last > seen:
                        yield text
            if over:
                return
            time.sleep(FOLLOW_SECONDS)


def _split_time(line: str) -> tuple[str, str]:
    """The time that Kubernetes puts before a line, and the line."""
    stamp = _STAMP.match(line)
    return (stamp[1], line[stamp.end() :].rstrip()) if stamp else ("", line.rstrip())


def _split_handle(handle: str) -> tuple[str, str]:
    namespace, _, name = handle.rpartition("/")[2].partition(":")
    return namespace, name


def _state(job: dict[str, Any]) -> AppState:
    # Volcano takes a moment to give a new job its status.
    phase = job.get("status", {}).get("state", {}).get("phase", "Pending")
    return _STATES.get(phase, AppState.RUNNING)


def _api() -> Any:
    from kubernetes import client

    return client.CustomObjectsApi(_connect())


def _connect() -> Any:
    from kubernetes import config

    return config.new_client_from_config()


SCHEDULER = Kubernetes()
