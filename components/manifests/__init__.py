"""Kubernetes objects for a role of the components, for `kubectl apply` and for `torchx run -s kueue`.

There is one module for each kind of job that a cluster may support: jobset, trainjob, volcano. They share the pod
(pods.py).
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from deit_fast.components.manifests.pods import Job
from torchx.specs import AppState

from deit_fast.runtime.discover import discover

Object = dict[str, Any]


class Kind:
    """A kind of job. Objects have the form of YAML and of the API: mappings, lists, strings and numbers."""

    api_version: str
    """GROUP/VERSION of the job object."""
    plural: str
    """The plural by which the API knows the kind."""
    done: str
    """The condition for `kubectl wait --for` that a job has ended successfully."""

    @property
    def api(self) -> dict[str, str]:
        """The arguments with which the client identifies the kind."""
        group, _, version = self.api_version.partition("/")
        return {"group": group, "version": version, "plural": self.plural}

    def build(self, job: Job) -> list[Object]:
        """The objects of a job, in order: first those that it needs, last the job itself."""
        raise NotImplementedError

    def nodes(self, found: Mapping[str, Any]) -> int:
        """The number of pods of a job in the form that the API returned."""
        raise NotImplementedError

    def state(self, found: Mapping[str, Any]) -> AppState:
        """The state of a job in the form that the API returned."""
        conditions = {
            each["type"] for each in found.get("status", {}).get("conditions", ()) if each["status"] == "True"
        }
        if conditions & {"Completed", "Complete"}:
            return AppState.SUCCEEDED
        if "Failed" in conditions:
            return AppState.FAILED
        return AppState.RUNNING if self._is_active(found) and not found["spec"].get("suspend") else AppState.PENDING

    def _is_active(self, found: Mapping[str, Any]) -> bool:
        """Whether the job has pods."""
        raise NotImplementedError


@cache
def find_kinds() -> dict[str, Kind]:
    """The kinds of jobs, by the names of their modules."""
    return discover(__name__, "KIND", Kind)
