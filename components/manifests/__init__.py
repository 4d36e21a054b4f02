"""A role of the components as Kubernetes' objects, for `kubectl apply` and for `torchx run -s kueue`.

One module for each kind of job that a cluster may have: jobset, trainjob, volcano. They share the pod (pods.py).
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from deit_fast.components.manifests.pods import Job
from torchx.specs import AppState

from deit_fast.runtime.discover import discover

Object = dict[str, Any]


class Kind:
    """A kind of job. Objects are what YAML and the API make of them: mappings, lists, strings and numbers."""

    api_version: str
    """GROUP/VERSION of the job's own object."""
    plural: str
    """What the API calls several of it."""
    done: str
    """What `kubectl wait --for` waits for: the end of a job that did well."""

    @property
    def api(self) -> dict[str, str]:
        """The arguments by which the client knows the kind."""
        group, _, version = self.api_version.partition("/")
        return {"group": group, "version": version, "plural": self.plural}

    def build(self, job: Job) -> list[Object]:
        """The objects of a job: what it needs, in order, and at the end the job itself."""
        raise NotImplementedError

    def nodes(self, found: Mapping[str, Any]) -> int:
        """The pods of a job that the API has shown."""
        raise NotImplementedError

    def state(self, found: Mapping[str, Any]) -> AppState:
        """The state of a job that the API has shown."""
        conditions = {
            each["type"] for each in found.get("status", {}).get("conditions", ()) if each["status"] == "True"
        }
        if conditions & {"Completed", "Complete"}:
            return AppState.SUCCEEDED
        if "Failed" in conditions:
            return AppState.FAILED
        return AppState.RUNNING if self._is_active(found) and not found["spec"].get("suspend") else AppState.PENDING

    def _is_active(self, found: Mapping[str, Any]) -> bool:
        """Whether there are pods of the job."""
        raise NotImplementedError


@cache
def find_kinds() -> dict[str, Kind]:
    """The kinds of jobs by the names of their modules."""
    return discover(__name__, "KIND", Kind)
