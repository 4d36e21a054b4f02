"""A job of Volcano: its pods, and its reactions to their events, following the states of Volcano's controller."""

import copy
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from tests.kubernetes.manifests import pod_name, policy_events
from tests.kubernetes.pods import Pod, now

ENDED = {"Succeeded", "Failed"}
FINISHED = {"Completed", "Failed", "Terminated", "Aborted"}
_ENDING = {"AbortJob": "Aborting", "TerminateJob": "Terminating", "CompleteJob": "Completing"}
_END = {"Aborting": "Aborted", "Terminating": "Terminated", "Completing": "Completed"}


class Pods(Protocol):
    """The cluster in which the pods of a job live."""

    def create_pod(self, pod: Pod) -> bool: ...


class Job:
    """A job and its status. `handle` receives all events of its pods."""

    def __init__(self, manifest: dict, namespace: str, pods: Pods) -> None:
        self.manifest = copy.deepcopy(manifest)
        self.manifest["metadata"] |= {
            "namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1
        }  # fmt: skip
        self.pods: dict[str, Pod] = {}
        self.phase, self.since = "", now()
        self.version = self.retries = 0
        self._cluster = pods

    @property
    def name(self) -> str:
        return self.manifest["metadata"]["name"]

    @property
    def spec(self) -> dict:
        return self.manifest["spec"]

    @property
    def gang(self) -> int:
        """Pods that must exist before any of them starts."""
        return self.spec["minAvailable"]

    def to_json(self) -> dict:
        if not self.phase:  # the controller has not seen it yet
            return self.manifest
        tasks: dict[str, Counter[str]] = {}
        for pod in self._present():
            tasks.setdefault(pod.task, Counter())[pod.phase] += 1
        counts = Counter(pod.phase.lower() for pod in self._present())
        numbers = {**counts, "terminating": self._terminating(), "retryCount": self.retries, "version": self.version}
        return {
            **self.manifest,
            "status": {
                "state": {"phase": self.phase, "lastTransitionTime": self.since},
                "minAvailable": self.spec["minAvailable"],
                "taskStatusCount": {name: {"phase": dict(phases)} for name, phases in tasks.items()},
                **{name: number for name, number in numbers.items() if number},
            },
        }

    def handle(self, event: str, pod: Pod) -> None:
        """Applies the policies to a pod's event, unless the pod is from before the last restart."""
        if pod.discarded or pod.version < self.version:
            return
        task = next(each for each in self.spec["tasks"] if each["name"] == pod.task)
        for policy in [*(task.get("policies") or []), *(self.spec.get("policies") or [])]:
            # Only the failure event has an exit code.
            code = pod.exit_code if event == "PodFailed" else 0
            if policy_events(policy) & {event, "*"} or policy.get("exitCode", 0) == (code or None):
                self.act(policy["action"])
                return

    def act(self, action: str = "SyncJob") -> None:
        if self.phase in FINISHED:
            self._kill(ENDED, lambda: None)
        elif self.phase in _END:
            self._kill(ENDED, self._end)
        elif self.phase == "Restarting":
            if action == "SyncJob":
                self._create(self._restarted)
            else:
                self._kill(set(), self._restarted)
        elif action == "RestartJob":
            self._kill(set(), self._restart)
        elif action in _ENDING:
            self._kill(ENDED, lambda: self.go(_ENDING[action]))
        else:
            self._create(self._settle)

    def _restart(self) -> None:
        self.retries += 1
        self.go("Restarting")

    def _restarted(self) -> None:
        if self.retries >= self.spec["maxRetry"]:
            self.go("Failed")
        elif self._replicas() - self._terminating() >= self.spec["minAvailable"]:
            self.go("Pending")

    def _end(self) -> None:
        if not self._terminating() and not any(pod.phase not in ENDED for pod in self.pods.values()):
            self.go(_END[self.phase])

    def _settle(self) -> None:
        counts = Counter(pod.phase for pod in self._present())
        if self.phase != "Running":
            started = counts["Running"] + counts["Succeeded"] + counts["Failed"]
            self.go("Running" if started >= self.spec["minAvailable"] else "Pending")
        elif counts["Succeeded"] + counts["Failed"] == self._replicas():
            self.go("Completed" if counts["Succeeded"] >= self.spec["minAvailable"] else "Failed")
        elif counts["Pending"] > self._replicas() - self.spec["minAvailable"]:
            self.go("Pending")

    def go(self, phase: str) -> None:
        if phase != self.phase:
            self.phase, self.since = phase, now()

    def _create(self, update: Callable[[], None]) -> None:
        """Creates missing pods, and deletes those that request it."""
        for task in self.spec["tasks"]:
            for index in range(task["replicas"]):
                name = pod_name(self.name, task["name"], index)
                if name not in self.pods:
                    pod = Pod(self._pod_manifest(name, task, index), task["name"], self.version)
                    if self._cluster.create_pod(pod):
                        self.pods[name] = pod
        update()

    def _kill(self, retain: set[str], update: Callable[[], None]) -> None:
        """Deletes the pods except those in a phase to retain; at the last retry, except those that have ended."""
        if self.phase not in FINISHED:
            self.version += 1
        if self.retries >= self.spec["maxRetry"] - 1:
            retain = ENDED
        for pod in self._present():
            if pod.phase not in retain:
                pod.discarded = True
                pod.delete()
        update()

    def _present(self) -> list[Pod]:
        return [pod for pod in self.pods.values() if not pod.deleted_at]

    def _terminating(self) -> int:
        return len(self.pods) - len(self._present())

    def _replicas(self) -> int:
        return sum(task["replicas"] for task in self.spec["tasks"])

    def _pod_manifest(self, name: str, task: dict, index: int) -> dict:
        """The pod of a task, as the controller and its plugins env and svc make it."""
        pod = copy.deepcopy(task["template"])
        metadata, spec = pod.setdefault("metadata", {}), pod["spec"]
        owned = {"volcano.sh/job-name": self.name, "volcano.sh/task-spec": task["name"],
                 "volcano.sh/queue-name": self.spec["queue"], "volcano.sh/task-index": str(index)}  # fmt: skip
        metadata |= {"name": name, "namespace": self.manifest["metadata"]["namespace"]}
        metadata["labels"] = {**(metadata.get("labels") or {}), **owned}
        metadata["annotations"] = {
            **(metadata.get("annotations") or {}),
            "volcano.sh/job-version": str(self.version),
            "volcano.sh/job-retry-count": str(self.retries),
        }
        owner = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "name": self.name, "controller": True,
                 "uid": self.manifest["metadata"]["uid"], "blockOwnerDeletion": True}  # fmt: skip
        metadata["ownerReferences"] = [owner]
        spec["schedulerName"] = spec.get("schedulerName") or self.spec["schedulerName"]
        if "priorityClassName" in self.spec:
            spec["priorityClassName"] = spec.get("priorityClassName") or self.spec["priorityClassName"]
        extra = {}
        if "env" in self.spec.get("plugins", {}):
            extra |= {"VK_TASK_INDEX": str(index), "VC_TASK_INDEX": str(index)}
        if "svc" in self.spec.get("plugins", {}):
            spec["hostname"], spec["subdomain"] = name, self.name
            for each in self.spec["tasks"]:
                hosts = [f"{pod_name(self.name, each['name'], i)}.{self.name}" for i in range(each["replicas"])]
                key = f"VC_{each['name'].replace('-', '_').upper()}"
                extra |= {f"{key}_HOSTS": ",".join(hosts), f"{key}_NUM": str(len(hosts))}
        for container in spec["containers"]:
            container["env"] = [
                *(container.get("env") or []), *({"name": key, "value": value} for key, value in extra.items())
            ]  # fmt: skip
        return pod
