"""JobSet (jobset.x-k8s.io/v1alpha2), which Kueue can queue: one Job whose pods are the nodes.

The exit status of a pod decides what happens to the whole set. The Job fails when its first pod fails, and its message
names that pod's status. The rules of the set match this message:

* A status after which a restart is useless ends the set.
* STOPPED, an orderly end with a checkpoint after the pod was told to end, restarts the set any number of times.
* Any other status restarts the set up to max_retries times.
"""

from collections.abc import Mapping
from typing import Any

from deit_fast.components.arguments import refuse
from deit_fast.components.manifests import Kind, Object
from deit_fast.components.manifests.pods import CONTAINER, FINAL, Job, build_pod

from deit_fast.runtime.exit_status import ExitStatus

RESTARTS = "jobset.sigs.k8s.io/restart-attempt"


class JobSet(Kind):
    api_version = "jobset.x-k8s.io/v1alpha2"
    plural = "jobsets"
    done = "condition=Completed"

    def build(self, job: Job) -> list[Object]:
        metadata = queued_metadata(job)
        return [{"apiVersion": self.api_version, "kind": "JobSet", "metadata": metadata, "spec": build_set(job)}]

    def nodes(self, found: Mapping[str, Any]) -> int:
        return int(found["spec"]["replicatedJobs"][0]["template"]["spec"].get("completions", 1))

    def _is_active(self, found: Mapping[str, Any]) -> bool:
        return any(each.get("active") for each in found.get("status", {}).get("replicatedJobsStatus", ()))


def queued_metadata(job: Job) -> dict[str, Any]:
    """The metadata of a job that Kueue may queue, stop and restart at any time."""
    metadata, place = job.metadata, job.place
    if not place.queue:
        return metadata
    if job.starts_once:
        refuse("resume: expected auto in a queue of Kueue, which may stop a job for another and start it again, from "
               "where it began")  # fmt: skip
    metadata["labels"]["kueue.x-k8s.io/queue-name"] = place.queue
    if place.priority_class:
        metadata["labels"]["kueue.x-k8s.io/priority-class"] = place.priority_class
    return metadata


def build_set(job: Job, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The spec of a JobSet. labels: additional labels for the template of its Job."""
    retries = job.role.max_retries
    rules = [_rule("final", "FailJobSet", FINAL)]
    if retries:
        rules.append(_rule("stopped", "RestartJobSetAndIgnoreMaxRestarts", [ExitStatus.STOPPED]))
    pod = build_pod(
        job,
        rank="JOB_COMPLETION_INDEX",
        rank0=f"{job.name}-{CONTAINER}-0-0.{job.name}",
        restarts=RESTARTS,
    )
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {"maxRestarts": retries, "rules": rules},
        "replicatedJobs": [
            {
                "name": CONTAINER,
                "replicas": 1,
                "template": {
                    "metadata": {"labels": {**job.labels, **(labels or {})}},
                    "spec": {
                        "parallelism": job.nodes,
                        "completions": job.nodes,
                        "completionMode": "Indexed",
                        "backoffLimit": 0,
                        "podReplacementPolicy": "Failed",
                        "podFailurePolicy": {"rules": [_fail_job(FINAL), _fail_job([ExitStatus.STOPPED])]},
                        "template": pod,
                    },
                },
            }
        ],
    }


def _fail_job(statuses: list[int]) -> dict[str, Any]:
    # Without this rule the Job would fail too (backoffLimit), but its message would not name the status.
    codes = {"containerName": CONTAINER, "operator": "In", "values": [int(status) for status in statuses]}
    return {"action": "FailJob", "onExitCodes": codes}


def _rule(name: str, action: str, statuses: list[int]) -> dict[str, Any]:
    pattern = f"failed with exit code ({'|'.join(str(int(status)) for status in statuses)}) matching"
    return {
        "name": name,
        "action": action,
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": [pattern],
    }


KIND = JobSet()
