"""A JobSet with one replicated Job: simulates JobSet's controller and Kubernetes' Job controller.

Follows JobSet v0.12.0, pkg/controllers (jobset_controller.go, failure_policy.go), and Kubernetes' pkg/controller/job.
When a set is suspended, its pods are deleted, and their ends do not count as failures. A failed pod fails its Job only
after all its pods have ended: a pod on a node that is out of reach therefore holds the Job until it is removed by hand.
"""

import copy
import random
import re
import string
import uuid

from tests.kubernetes.pods import Pod, now
from tests.kubernetes.volcano import ENDED, Pods

_BACKOFF = ("BackoffLimitExceeded", "Job has reached the specified backoff limit")


class JobSet:
    """A set and its status. The cluster calls `act` repeatedly."""

    gang = 1
    """Pods that must exist before any of them starts: one, since Kubernetes' own scheduler starts each by itself."""

    def __init__(self, manifest: dict, namespace: str, pods: Pods, owner: dict | None = None) -> None:
        self.manifest = copy.deepcopy(manifest)
        self.manifest["metadata"] |= {"namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": now()}
        if owner:
            self.manifest["metadata"]["ownerReferences"] = [owner]
        (self.replicated,) = self.spec["replicatedJobs"]
        self.pods: dict[str, Pod] = {}
        self.restarts = self.counted = 0
        self.failing: tuple[str, str] | None = None
        """Reason and message of the Job's failure, from its first failed pod on."""
        self.end: tuple[str, str] | None = None
        """The type and the message of the condition that ends the set."""
        self._done: set[int] = set()
        self._replaced: set[str] = set()
        """Names of pods of Jobs before, which have to go first."""
        self._cluster = pods

    @property
    def name(self) -> str:
        return self.manifest["metadata"]["name"]

    @property
    def spec(self) -> dict:
        return self.manifest["spec"]

    @property
    def suspended(self) -> bool:
        return self.spec.get("suspend", False)

    @property
    def active(self) -> int:
        """Pods that wait or run and have not been told to end, which is what a Job counts."""
        return sum(pod.phase not in ENDED and not pod.deleted_at for pod in self.pods.values())

    @property
    def pod_sets(self) -> list[tuple[int, dict]]:
        return [(self._nodes, self._job["template"])]

    def suspend(self, whether: bool) -> None:
        self.spec["suspend"] = whether

    def to_json(self) -> dict:
        conditions = [{"type": "Suspended", "status": str(self.suspended), "message": "", "reason": "Suspended"}]
        if self.end:
            conditions.append({"type": self.end[0], "status": "True", "message": self.end[1], "reason": self.end[0]})
        counts = {"active": int(self.active > 0), "suspended": int(self.suspended), "succeeded": int(self._complete),
                  "failed": 0, "ready": int(self.active == self._nodes)}  # fmt: skip
        status = {"restarts": self.restarts, "restartsCountTowardsMax": self.counted, "conditions": conditions,
                  "replicatedJobsStatus": [{"name": self.replicated["name"], **counts}]}  # fmt: skip
        return {**self.manifest, "status": status}

    def handle(self, event: str, pod: Pod) -> None:
        """Does nothing: a Job looks at its pods, not at events."""

    def act(self) -> None:
        for name, pod in self.pods.items():
            if self.suspended or self.end or self.failing or name in self._replaced:
                pod.held = False
        for name in self._replaced & self.pods.keys():
            self.pods[name].delete()
        if self._replaced & self.pods.keys():
            return
        if self.end or self.suspended:
            for pod in self.pods.values():
                if pod.phase not in ENDED or not self.end:
                    pod.delete()
        elif self.failing:
            if all(pod.phase in ENDED for pod in self.pods.values()):
                self._apply_failure_policy(*self.failing)
        else:
            self._look()

    def _look(self) -> None:
        for pod in self.pods.values():
            if pod.phase == "Succeeded":
                self._done.add(pod.index)
                pod.held = False
            if pod.phase == "Failed" and not self.failing:
                self.failing = self._failure(pod)
        if self.failing:
            for pod in self.pods.values():
                if pod.phase not in ENDED:
                    pod.delete()
        elif self._complete:
            self.end = ("Completed", "jobset completed successfully")
        else:
            covered = self._done | {pod.index for pod in self.pods.values()}  # a pod that is ending is waited for
            for index in sorted({*range(self._nodes)} - covered):
                pod = Pod(self._pod_manifest(index), self.replicated["name"], self.restarts)
                pod.index, pod.held = index, True
                if self._cluster.create_pod(pod):
                    self.pods[pod.name] = pod

    @property
    def _job(self) -> dict:
        return self.replicated["template"]["spec"]

    @property
    def _nodes(self) -> int:
        return self._job["completions"]

    @property
    def _complete(self) -> bool:
        return len(self._done) == self._nodes

    def _failure(self, pod: Pod) -> tuple[str, str]:
        for index, rule in enumerate(self._job.get("podFailurePolicy", {}).get("rules", ())):
            codes = rule.get("onExitCodes")
            if codes and pod.exit_code in codes["values"]:
                assert (rule["action"], codes["operator"]) == ("FailJob", "In")
                text = (f"Container {codes['containerName']} for pod {pod.namespace}/{pod.name} failed with exit code "
                        f"{pod.exit_code} matching FailJob rule at index {index}")  # fmt: skip
                return "PodFailurePolicy", text
        assert self._job["backoffLimit"] == 0
        return _BACKOFF

    def _apply_failure_policy(self, reason: str, message: str) -> None:
        policy = self.spec["failurePolicy"]
        action = "RestartJobSet"
        for rule in policy.get("rules", ()):
            reasons, patterns = rule.get("onJobFailureReasons"), rule.get("onJobFailureMessagePatterns")
            if reason in (reasons or [reason]) and any(re.search(p, message) for p in patterns or [""]):
                action = rule["action"]
                break
        if action == "FailJobSet":
            self.end = ("Failed", f"jobset failed due to FailJobSet failure policy action: {message}")
        elif action == "RestartJobSet" and self.counted >= policy.get("maxRestarts", 0):
            self.end = ("Failed", "jobset failed due to reaching max number of restarts")
        else:
            self.restarts += 1
            self.counted += action == "RestartJobSet"
            self.failing, self._done, self._replaced = None, set(), set(self.pods)

    def _pod_manifest(self, index: int) -> dict:
        pod = copy.deepcopy(self._job["template"])
        metadata, spec = pod.setdefault("metadata", {}), pod["spec"]
        host = f"{self.name}-{self.replicated['name']}-0-{index}"
        lot = "".join(random.choices(string.ascii_lowercase, k=5))
        set_labels = {"jobset.sigs.k8s.io/jobset-name": self.name,
                      "jobset.sigs.k8s.io/replicatedjob-name": self.replicated["name"],
                      "jobset.sigs.k8s.io/restart-attempt": str(self.restarts)}  # fmt: skip
        place = {"batch.kubernetes.io/job-completion-index": str(index)}
        metadata |= {"name": f"{host}-{lot}", "namespace": self.manifest["metadata"]["namespace"]}
        metadata["labels"] = {**(metadata.get("labels") or {}), **set_labels, **place}
        metadata["annotations"] = {**(metadata.get("annotations") or {}), **set_labels, **place}
        spec["hostname"], spec["subdomain"] = host, self.name
        for container in spec["containers"]:
            container["env"] = [*(container.get("env") or []), {"name": "JOB_COMPLETION_INDEX", "value": str(index)}]
        return pod
