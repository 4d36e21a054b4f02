"""A TrainJob of Kubeflow's Trainer v2.3.0, simulated by a JobSet that is made from it and its TrainingRuntime."""

import copy
import uuid

from tests.kubernetes.jobset import JobSet
from tests.kubernetes.pods import now
from tests.kubernetes.volcano import Pods

_PET = {"PET_NPROC_PER_NODE": "auto", "PET_MASTER_PORT": "29500"}


class TrainJob:
    """A TrainJob and its JobSet, which has the same name and is suspended together with it."""

    def __init__(self, manifest: dict, runtime: dict, namespace: str, pods: Pods) -> None:
        self.manifest = copy.deepcopy(manifest)
        metadata = self.manifest["metadata"]
        metadata |= {"namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": now()}
        template = copy.deepcopy(runtime["spec"]["template"])
        nodes = self.manifest["spec"].get("trainer", {}).get("numNodes", runtime["spec"]["mlPolicy"]["numNodes"])
        for each in template["spec"]["replicatedJobs"]:
            job = each["template"]["spec"]
            job["parallelism"] = job["completions"] = nodes
            (container,) = (c for c in job["template"]["spec"]["containers"] if c["name"] == "node")
            pet = {
                **_PET,
                "PET_NNODES": str(nodes),
                "PET_MASTER_ADDR": f"{metadata['name']}-node-0-0.{metadata['name']}",
            }
            rank = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
            container["env"] += [{"name": name, "value": value} for name, value in pet.items()]
            container["env"].append({"name": "PET_NODE_RANK", "valueFrom": rank})
        owner = {"apiVersion": manifest["apiVersion"], "kind": "TrainJob", "name": metadata["name"],
                 "uid": metadata["uid"], "controller": True}  # fmt: skip
        named = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": metadata["name"]}}
        self.jobset = JobSet({**named, **template, "metadata": named["metadata"]}, namespace, pods, owner)

    @property
    def end(self) -> tuple[str, str] | None:
        return self.jobset.end

    @property
    def suspended(self) -> bool:
        return self.jobset.suspended

    @property
    def active(self) -> int:
        return self.jobset.active

    @property
    def pod_sets(self) -> list[tuple[int, dict]]:
        return self.jobset.pod_sets

    def suspend(self, whether: bool) -> None:
        self.manifest["spec"]["suspend"] = whether
        self.jobset.suspend(whether)

    def to_json(self) -> dict:
        shown = self.jobset.to_json()["status"]
        names = {"Completed": "Complete"}
        conditions = [{**each, "type": names.get(each["type"], each["type"])} for each in shown["conditions"]]
        status = {"conditions": conditions, "jobsStatus": shown["replicatedJobsStatus"]}
        return {**self.manifest, "status": status}
