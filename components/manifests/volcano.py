"""Volcano's Job (batch.volcano.sh/v1alpha1), as TorchX's scheduler kubernetes makes it, but in one task."""

from typing import Any

from deit_fast.components.arguments import refuse
from deit_fast.components.manifests import Kind, Object
from deit_fast.components.manifests.pods import CONTAINER, FINAL, Job, build_pod

POLICIES: list[dict[str, Any]] = [
    *({"exitCode": status, "action": "TerminateJob"} for status in FINAL),
    {"event": "PodEvicted", "action": "RestartJob"},
    {"event": "PodFailed", "action": "RestartJob"},
]
"""Actions after the end of a pod. Volcano applies the first one that matches."""


class Volcano(Kind):
    api_version = "batch.volcano.sh/v1alpha1"
    plural = "jobs"
    done = "jsonpath={.status.state.phase}=Completed"

    def build(self, job: Job) -> list[Object]:
        place, retries = job.place, job.role.max_retries
        if place.topology:
            refuse(f"topology={place.topology!r}: expected none with Volcano, whose topology is another")
        pod = build_pod(
            job,
            rank="VC_TASK_INDEX",
            rank0=f"{job.name}-{CONTAINER}-0.{job.name}",
            restarts="volcano.sh/job-retry-count",
        )
        task: dict[str, Any] = {"name": CONTAINER, "replicas": job.nodes, "template": pod}
        if retries:
            task["policies"] = POLICIES
        spec: dict[str, Any] = {
            "schedulerName": "volcano",
            "queue": place.queue or "default",
            "minAvailable": job.nodes,
            "maxRetry": retries + 1,  # Volcano counts starts, not restarts, and takes 0 for 3
            "plugins": {"env": [], "svc": ["--publish-not-ready-addresses"]},
            "tasks": [task],
        }
        if place.priority_class:
            spec["priorityClassName"] = place.priority_class
        return [{"apiVersion": self.api_version, "kind": "Job", "metadata": job.metadata, "spec": spec}]


KIND = Volcano()
