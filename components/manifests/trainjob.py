"""TrainJob of Kubeflow's Trainer v2 (trainer.kubeflow.org/v1alpha1), with the TrainingRuntime that it runs in.

A TrainJob sets the number of nodes. The runtime is the template of the JobSet that the Trainer makes from both. The
template also holds the rules for exit statuses, so each job brings its own runtime.
"""

from collections.abc import Mapping
from typing import Any

from deit_fast.components.manifests import Kind, Object
from deit_fast.components.manifests.jobset import build_set, queued_metadata
from deit_fast.components.manifests.pods import Job

_GROUP = "trainer.kubeflow.org"


class TrainJob(Kind):
    api_version = f"{_GROUP}/v1alpha1"
    plural = "trainjobs"
    done = "condition=Complete"

    def build(self, job: Job) -> list[Object]:
        template = {"spec": build_set(job, {f"{_GROUP}/trainjob-ancestor-step": "trainer"})}
        metadata = job.metadata
        metadata["labels"][f"{_GROUP}/framework"] = "torch"
        runtime = {
            "apiVersion": self.api_version,
            "kind": "TrainingRuntime",
            "metadata": metadata,
            "spec": {"mlPolicy": {"numNodes": job.nodes, "torch": {}}, "template": template},
        }
        train_job = {
            "apiVersion": self.api_version,
            "kind": "TrainJob",
            "metadata": queued_metadata(job),
            "spec": {
                "runtimeRef": {"apiGroup": _GROUP, "kind": "TrainingRuntime", "name": job.name},
                "trainer": {"numNodes": job.nodes},
            },
        }
        return [runtime, train_job]

    def nodes(self, found: Mapping[str, Any]) -> int:
        return int(found["spec"].get("trainer", {}).get("numNodes", 1))

    def _is_active(self, found: Mapping[str, Any]) -> bool:
        return any(each.get("active") for each in found.get("status", {}).get("jobsStatus", ()))


KIND = TrainJob()
