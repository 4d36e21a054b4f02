"""Kueue: a suspended job waits until its queue has room for all of it, or is preempted for one of higher priority.

Follows Kueue v0.19.2, pkg/controller/jobframework/reconciler.go. A stopped job keeps its quota until none of its pods
is active, and then waits again, ordered by priority and time. The only resource here is the CPU.
"""

from dataclasses import dataclass, field
from typing import Protocol

QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
QUOTA = 8.0
"""CPUs of the only ClusterQueue."""
QUEUES = {"gpus"}
"""Its LocalQueues."""
PRIORITIES = {"": 0, "urgent": 1000}


class Queued(Protocol):
    """A JobSet, or a TrainJob."""

    manifest: dict
    end: tuple[str, str] | None

    @property
    def suspended(self) -> bool: ...
    @property
    def active(self) -> int: ...
    @property
    def pod_sets(self) -> list[tuple[int, dict]]:
        """Numbers of pods, and their templates."""
        ...

    def suspend(self, whether: bool) -> None: ...


@dataclass
class Workload:
    """A job's place in the queue."""

    job: Queued
    number: int
    admitted: bool = False
    evicted: str = ""
    """The reason why it was stopped, until it is admitted again."""
    preemptions: int = 0
    pending: str = ""
    conditions: list[dict] = field(default_factory=list)

    @property
    def labels(self) -> dict[str, str]:
        return self.job.manifest["metadata"].get("labels", {})

    @property
    def priority(self) -> int:
        return PRIORITIES[self.labels.get(PRIORITY, "")]

    @property
    def cpus(self) -> float:
        total = 0.0
        for count, template in self.job.pod_sets:
            for container in template["spec"]["containers"]:
                cpu = container.get("resources", {}).get("requests", {}).get("cpu", "0m")
                total += count * float(cpu.removesuffix("m")) / 1000
        return total

    def to_json(self) -> dict:
        uid, queue = self.job.manifest["metadata"]["uid"], self.labels[QUEUE]
        conditions = [{"type": "QuotaReserved", "status": str(self.admitted), "message": self.pending, "reason": "-"}]
        if self.evicted:
            conditions.append({"type": "Evicted", "status": "True", "message": self.evicted, "reason": "Preempted"})
        name = f"jobset-{self.job.manifest['metadata']['name']}"
        return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "Workload", "spec": {"queueName": queue},
                "metadata": {"name": name, "labels": {"kueue.x-k8s.io/job-uid": uid}},
                "status": {"conditions": conditions}}  # fmt: skip


class Kueue:
    """The workloads of a cluster."""

    def __init__(self) -> None:
        self.workloads: list[Workload] = []
        self._count = 0

    def add(self, job: Queued) -> None:
        """Suspends a new job that names a queue, as Kueue's webhook does."""
        if QUEUE in job.manifest["metadata"].get("labels", {}):
            job.suspend(True)
            self._count += 1
            self.workloads.append(Workload(job, self._count))

    def remove(self, job: Queued) -> None:
        self.workloads = [each for each in self.workloads if each.job is not job]

    def preempt(self, job: Queued, why: str = "Preempted to accommodate a workload") -> None:
        """Stops a job; it is admitted again when there is room."""
        (workload,) = (each for each in self.workloads if each.job is job)
        workload.evicted, workload.pending = why, why
        workload.preemptions += 1
        job.suspend(True)

    def act(self) -> None:
        for each in self.workloads:
            if each.evicted and each.admitted and not each.job.active:
                each.admitted = False  # its quota becomes free
        waiting = sorted((each for each in self.workloads if not each.admitted and not each.job.end),
                         key=lambda each: (-each.priority, each.number))  # fmt: skip
        for each in waiting:
            queue = each.labels[QUEUE]
            if queue not in QUEUES:
                each.pending = f"LocalQueue {queue} doesn't exist"
                continue
            missing = each.cpus - (QUOTA - sum(other.cpus for other in self._holders()))
            if missing <= 0:
                each.admitted, each.evicted, each.pending = True, "", "Quota reserved in ClusterQueue cluster"
                each.job.suspend(False)
                continue
            lacking = f"insufficient unused quota for cpu in flavor default, {missing:g} more needed"
            each.pending = f"couldn't assign flavors to pod set node: {lacking}"
            lower = [other for other in self._holders() if other.priority < each.priority and not other.evicted]
            if lower and sum(other.cpus for other in lower) >= missing:
                self.preempt(min(lower, key=lambda other: (other.priority, -other.number)).job)

    def _holders(self) -> list[Workload]:
        return [each for each in self.workloads if each.admitted and not each.job.end]
