"""What the pipelines ask of Kubernetes itself: the jobs that are there already, and the state of each.

TorchX 0.7.0 fails on a job that is gone, and on a phase it has no name for.
"""

from typing import Any

from torchx.specs import AppDryRunInfo, AppState, is_terminal
from torchx.util.strings import normalize_str

from .state import PipelineError, explain

_MARK = "deit-fast/output"
_VOLCANO = {"group": "batch.volcano.sh", "version": "v1alpha1", "plural": "jobs"}
_STATES = {
    "Pending": AppState.PENDING,
    "Completed": AppState.SUCCEEDED,
    "Failed": AppState.FAILED,
    "Terminated": AppState.FAILED,
    "Aborted": AppState.CANCELLED,
}  # and on the way from one to another: Running, Restarting, Completing, ...


def mark_job(job: AppDryRunInfo[Any], output: str) -> None:
    """Writes into a job what it makes."""
    job.request.resource["metadata"].setdefault("annotations", {})[_MARK] = output


def find_jobs(namespace: str) -> dict[str, str]:
    """Handles of the pending and running jobs of a namespace that a pipeline submitted, by what they make.

    Raises PipelineError where Kubernetes does not answer.
    """
    try:
        jobs = _api().list_namespaced_custom_object(**_VOLCANO, namespace=namespace)["items"]
    except Exception as error:  # of a client that may be missing, for an API that may be anywhere
        raise PipelineError(f"Kubernetes: {explain(error)}") from error
    return {
        output: f"kubernetes://torchx/{namespace}:{job['metadata']['name']}"
        for job in jobs
        if (output := (job["metadata"].get("annotations") or {}).get(_MARK)) and not is_terminal(_state(job))
    }


def job_state(handle: str) -> AppState | None:
    """The state of a job, None for one that is gone. Raises what the client raises without an answer."""
    namespace, name = _find(handle)
    try:
        return _state(_api().get_namespaced_custom_object(**_VOLCANO, namespace=namespace, name=name))
    except Exception as error:
        if getattr(error, "status", None) == 404:
            return None
        raise


def read_log(handle: str, role: str, replica: int) -> list[str]:
    """The lines a pod printed so far, each after its time. Raises what the client raises.

    Clients before 37 give the printed form of the bytes, in one line, for the text that TorchX asks for.
    """
    from kubernetes import client

    namespace, name = _find(handle)
    pod = normalize_str(f"{name}-{role}-{replica}-0")
    api = client.CoreV1Api(_connect())
    answer: Any = api.read_namespaced_pod_log(pod, namespace, timestamps=True, _preload_content=False)
    return answer.data.decode(errors="replace").splitlines()


def _find(handle: str) -> tuple[str, str]:
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
