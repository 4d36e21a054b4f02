"""The checks with which a cluster with Volcano accepts objects: its schemas and Volcano's admission webhook."""

import copy
import re
from collections.abc import Mapping

import kubernetes_validate

# Fields of Volcano's batch.volcano.sh/v1alpha1 Job.
JOB = {"schedulerName", "minAvailable", "volumes", "tasks", "policies", "plugins", "runningEstimate", "queue",
       "maxRetry", "ttlSecondsAfterFinished", "priorityClassName", "minSuccess", "networkTopology"}  # fmt: skip
TASK = {"name", "replicas", "minAvailable", "template", "policies", "topologyPolicy", "maxRetry", "dependsOn",
        "partitionPolicy"}  # fmt: skip
# Words that a policy may use. PodRunning, OutOfSync and CommandIssued are events too, but only for the controller.
ACTIONS = {"AbortJob", "RestartJob", "RestartTask", "RestartPod", "RestartPartition", "TerminateJob", "CompleteJob",
           "ResumeJob"}  # fmt: skip
EVENTS = {"PodFailed", "PodEvicted", "PodPending", "Unknown", "TaskCompleted", "TaskFailed", "JobUpdated", "*"}
PLUGINS = {"env", "svc", "ssh", "pytorch", "tensorflow", "mpi", "ray", "hcclrank"}
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123, for every name in a cluster's DNS
DEFAULT_RETRIES = 3  # Volcano's replacement for 0


def check_queue(name: str, queues: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Why Volcano accepts no job for a queue. queues: the cluster's, by name, with their `state` and `parent`."""
    if name not in queues:
        return [f'unable to find job queue: queue.scheduling.volcano.sh "{name}" not found']
    found = []
    if queues[name]["state"] != "Open":
        state = queues[name]["state"]
        found.append(f"can only submit job to queue with state `Open`, queue `{name}` status is `{state}`")
    children = [child for child, queue in queues.items() if queue.get("parent") == name]
    if name == "root":
        found.append("can not submit job to root queue")
    elif children:
        found.append(f"can only submit job to leaf queue, queue `{name}` has {len(children)} child queues")
    return found


class Refused(Exception):
    """A Status of Kubernetes: an HTTP code, a reason, a message."""

    def __init__(self, code: int, reason: str, message: str, details: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.details = code, reason, dict(details or {})


def complete_job(job: dict) -> dict:
    """The job with the defaults of Volcano's webhook."""
    job = copy.deepcopy(job)
    spec = job.setdefault("spec", {})
    spec["schedulerName"] = spec.get("schedulerName") or "volcano"
    spec["queue"] = spec.get("queue") or "default"
    spec["maxRetry"] = spec.get("maxRetry") or DEFAULT_RETRIES
    for index, task in enumerate(spec.get("tasks", [])):
        task["name"] = task.get("name") or f"default{index}"
        task["minAvailable"] = task.get("minAvailable", task["replicas"])
    spec["minAvailable"] = spec.get("minAvailable") or sum(task["minAvailable"] for task in spec.get("tasks", []))
    return job


def check_job(job: dict) -> list[str]:
    """The mistakes in a job, except for those in its pods."""
    found = []
    if (job.get("apiVersion"), job.get("kind")) != ("batch.volcano.sh/v1alpha1", "Job"):
        found.append(f"{job.get('apiVersion')} {job.get('kind')}: expected a Job of batch.volcano.sh/v1alpha1")
    name, spec = job["metadata"].get("name", ""), job["spec"]
    if not LABEL.fullmatch(name):
        found.append(f"metadata.name {name!r}: expected a DNS label")
    found += [f"unknown field spec.{field}" for field in spec.keys() - JOB]
    found += [f"unable to find job plugin: {plugin}" for plugin in spec.get("plugins", {}).keys() - PLUGINS]
    tasks = spec.get("tasks") or []
    names = [task["name"] for task in tasks]
    if not tasks:
        found.append("No task specified in job spec")
    if len(set(names)) < len(names):
        found.append(f"duplicated task name in {', '.join(names)}")
    if sum(task["replicas"] for task in tasks) < spec.get("minAvailable", 0):
        found.append("job 'minAvailable' should not be greater than total replicas in tasks")
    for task in tasks:
        found += [f"unknown field spec.tasks.{field}" for field in task.keys() - TASK]
        if not LABEL.fullmatch(task["name"]):
            found.append(f"task name {task['name']!r}: expected a DNS label")
        for index in range(task["replicas"]):
            if not LABEL.fullmatch(pod := pod_name(name, task["name"], index)):
                found.append(f"pod name {pod!r}: expected a DNS label")
        found += _check_policies(task.get("policies") or [])
    return found + _check_policies(spec.get("policies") or [])


def _check_policies(policies: list[dict]) -> list[str]:
    found: list[str] = []
    events: list[str] = []
    codes = [policy["exitCode"] for policy in policies if "exitCode" in policy]
    for policy in policies:
        named = policy_events(policy)
        events += sorted(named)
        if policy.get("action") not in ACTIONS:
            found.append(f"policy action {policy.get('action')!r}: expected one of {', '.join(sorted(ACTIONS))}")
        if bool(named) == ("exitCode" in policy):
            found.append("policy: expected either events or an exit code")
        found += [f"policy event {name!r}: expected one of {', '.join(sorted(EVENTS))}" for name in named - EVENTS]
    if len(set(events)) < len(events) or ("*" in events and len(events) > 1):
        found.append(f"policy events {', '.join(events)}: expected each once, or * alone")
    if len(set(codes)) < len(codes) or 0 in codes:
        found.append(f"policy exit codes {codes}: expected each once, and not 0")
    return found


def policy_events(policy: dict) -> set[str]:
    return {name for name in (policy.get("event"), *(policy.get("events") or [])) if name}


def check_pods(job: dict, version: str) -> list[str]:
    """The mistakes in the job's pods by the strict schema of a version of Kubernetes."""
    found = []
    for task in job["spec"]["tasks"]:
        pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(task["template"])}
        pod.setdefault("metadata", {})["name"] = pod_name(job["metadata"]["name"], task["name"], 0)
        try:
            kubernetes_validate.validate(pod, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"task {task['name']}: {error.message}")
    return found


def pod_name(job: str, task: str, index: int) -> str:
    return f"{job}-{task}-{index}"


def check_rules(manifest: dict) -> list[str]:
    """The mistakes that JobSet's and the Trainer's webhooks refuse and no schema contains."""
    if manifest["kind"] == "TrainJob":
        return []
    spec, found = manifest["spec"], []
    if manifest["kind"] == "TrainingRuntime":
        spec = spec["template"]["spec"]
    for each in spec["replicatedJobs"]:
        name, job = manifest["metadata"]["name"], each["template"]["spec"]
        longest = f"{name}-{each['name']}-{each['replicas'] - 1}-{job['completions'] - 1}-abcde"
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", longest):
            found.append(f"pod name {longest!r}: expected a label of RFC 1035")
        containers = {container["name"] for container in job["template"]["spec"]["containers"]}
        for rule in job.get("podFailurePolicy", {}).get("rules", ()):
            codes = rule.get("onExitCodes", {})
            if codes and codes["containerName"] not in containers:
                found.append(f"podFailurePolicy: no container {codes['containerName']!r}")
            if codes and codes["values"] != sorted(set(codes["values"])):
                found.append(f"podFailurePolicy: {codes['values']}: expected them in order, and each once")
        if manifest["kind"] == "TrainingRuntime" and (each["replicas"] != 1 or "node" not in containers):
            found.append("a trainer: expected one replica, and a container called node")
    names = [rule["name"] for rule in spec.get("failurePolicy", {}).get("rules", ())]
    if len(set(names)) < len(names):
        found.append(f"failurePolicy rules {names}: expected each name once")
    return found
