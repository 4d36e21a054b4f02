"""A stand-in for a Kubernetes cluster with Volcano: its API on a local port, its pods as processes of this machine.

    python -m tests.kubernetes FOLDER

It accepts what the real API accepts, and does what Volcano's controller and a kubelet do. Its nodes are only names to
which pods are assigned, and which can be lost. It does not simulate scheduling by size, networks between nodes, or
images: a request of any size is granted, and the image is this machine's file system (see pods.py).
"""

import contextlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from tests.conftest import ROOT
from tests.kubernetes.api import serve
from tests.kubernetes.jobset import JobSet
from tests.kubernetes.kueue import Kueue
from tests.kubernetes.manifests import Refused, check_job, check_pods, check_queue, check_rules, complete_job
from tests.kubernetes.pods import Pod, now
from tests.kubernetes.schemas import CURRENT, check
from tests.kubernetes.trainjob import TrainJob
from tests.kubernetes.volcano import Job

VERSION = "1.34"
NAMESPACE, QUEUE = "research", "default"
QUEUES = {
    "root": {"state": "Open"},
    QUEUE: {"state": "Open", "parent": "root"},
    "closed": {"state": "Closed", "parent": "root"},
    "department": {"state": "Open", "parent": "root"},
    "team": {"state": "Open", "parent": "department"},
}
NODES = ("node-1", "node-2")
UNREACHABLE = "node.kubernetes.io/unreachable"
TOLERATION_SECONDS = 300  # for a pod that does not set it
SERVICE_ACCOUNTS, PRIORITY_CLASSES = {"default", "trainer"}, {"high"}
_POLL_SECONDS = 0.05


def image_environment() -> dict[str, str]:
    """The environment of an image with this repository."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": "/root", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


class Cluster:
    """The content of the cluster. Every access holds the lock."""

    def __init__(self, folder: Path, image: Mapping[str, str]) -> None:
        self.folder, self.image = folder, dict(image)
        self.kubeconfig = folder / "kubeconfig"
        self.token = str(uuid.uuid4())
        self.lock = threading.RLock()
        self.namespaces = {NAMESPACE}
        self.claims: dict[str, Path] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.jobs: dict[tuple[str, str], Job] = {}
        self.jobsets: dict[tuple[str, str], JobSet] = {}
        self.train_jobs: dict[tuple[str, str], TrainJob] = {}
        self.runtimes: dict[tuple[str, str], dict] = {}
        self.kueue = Kueue()
        self.pods: dict[tuple[str, str], Pod] = {}
        self.nodes: dict[str, float] = dict.fromkeys(NODES, 0.0)
        """The time at which each was lost, 0 for one that is ready."""
        self.past: list[Pod] = []
        """Pods that are gone; the API does not show them."""
        self._hosts = folder / "hosts"
        self._addresses: dict[str, str] = {}
        self._ended = threading.Event()
        self._controller = threading.Thread(target=self._run, name="controller", daemon=True)
        self._failure: BaseException | None = None

    def add_claim(self, name: str) -> Path:
        """The folder of a new persistent volume claim."""
        path = self.folder / "claims" / name
        path.mkdir(parents=True)
        with self.lock:
            self.claims[name] = path
        return path

    def create_job(self, namespace: str, manifest: dict, keep: bool = True) -> Job:
        manifest = complete_job(manifest)
        found = check_job(manifest)
        found += check_queue(manifest["spec"]["queue"], QUEUES)
        if found := found or check_pods(manifest, VERSION):
            text = f'admission webhook "validatejob.volcano.sh" denied the request: {"; ".join(found)}'
            raise Refused(400, "BadRequest", text)
        job = Job(manifest, namespace, self)
        if (namespace, job.name) in self.jobs:
            text = f'jobs.batch.volcano.sh "{job.name}" already exists'
            raise Refused(409, "Conflict", text, {"name": job.name, "group": "batch.volcano.sh", "kind": "jobs"})
        if keep:
            self.jobs[namespace, job.name] = job
        return job

    def delete_job(self, namespace: str, name: str) -> None:
        """Deletes the job at once, and its pods when they have ended."""
        for pod in self.jobs.pop((namespace, name)).pods.values():
            pod.delete()

    def create_object(self, namespace: str, manifest: dict) -> JobSet | TrainJob | dict:
        """Creates a JobSet, a TrainJob or a TrainingRuntime, after the checks of an API server and its webhooks."""
        if found := check(manifest, CURRENT, VERSION) or check_rules(manifest):
            raise Refused(400, "BadRequest", f"{manifest['kind']}: {'; '.join(found)}")
        key, kind = (namespace, manifest["metadata"]["name"]), manifest["kind"]
        into = {"JobSet": self.jobsets, "TrainJob": self.train_jobs, "TrainingRuntime": self.runtimes}[kind]
        if key in into:
            details = {"name": key[1], "kind": f"{kind.lower()}s"}
            raise Refused(409, "AlreadyExists", f'{kind.lower()}s "{key[1]}" already exists', details)
        if kind == "TrainingRuntime":
            self.runtimes[key] = {**manifest, "metadata": {**manifest["metadata"], "creationTimestamp": now()}}
            return self.runtimes[key]
        if kind == "JobSet":
            job: JobSet | TrainJob = JobSet(manifest, namespace, self)
            self.jobsets[key] = job
        else:
            runtime = self.runtimes.get((namespace, manifest["spec"]["runtimeRef"]["name"]))
            if runtime is None:
                raise Refused(422, "Invalid", f"TrainJob {key[1]}: spec.runtimeRef: not found")
            self.train_jobs[key] = job = TrainJob(manifest, runtime, namespace, self)
            self.jobsets[key] = job.jobset
        self.kueue.add(job)
        return job

    def delete_object(self, namespace: str, name: str, kind: str) -> None:
        """Deletes the object at once, and its pods when they have ended."""
        if kind == "runtimes":
            del self.runtimes[namespace, name]
            return
        if kind == "train_jobs":
            self.kueue.remove(self.train_jobs.pop((namespace, name)))
        jobset = self.jobsets.pop((namespace, name))
        self.kueue.remove(jobset)
        for pod in jobset.pods.values():
            pod.held = False
            pod.delete()

    def lose_node(self, name: str) -> None:
        """Simulates a power cut or a lost network: Kubernetes only sees that the node is silent."""
        with self.lock:
            self.nodes[name] = time.monotonic()
            for pod in self._pods_on(name):
                pod.cut_off()

    def delete_node(self, name: str) -> None:
        """Deletes a node; Kubernetes then collects its pods."""
        del self.nodes[name]
        for pod in self._pods_on(name):
            pod.collect()

    def _pods_on(self, node: str) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.node == node]

    def _evict_from_lost_nodes(self) -> None:
        """Marks pods for deletion when their toleration ends; their objects stay, because no kubelet answers."""
        for name, since in self.nodes.items():
            for pod in self._pods_on(name) if since else []:
                if not pod.deleted_at and time.monotonic() - since > _toleration(pod.spec):
                    pod.reason = "DeletionByTaintManager"
                    pod.delete()

    def create_pod(self, pod: Pod) -> bool:
        """Whether the API accepts the pod: its name is free, and everything that it refers to exists."""
        spec = pod.spec
        allowed = (
            spec.get("serviceAccountName", "default") in SERVICE_ACCOUNTS
            and spec.get("priorityClassName", "high") in PRIORITY_CLASSES
        )
        if not allowed or (pod.namespace, pod.name) in self.pods:
            return False
        self.pods[pod.namespace, pod.name] = pod
        subdomain = f"{pod.hostname}.{spec.get('subdomain', pod.namespace)}"
        if pod.hostname not in self._addresses:
            count = len(self._addresses) + 2
            self._addresses[pod.hostname] = f"127.1.{count // 250}.{count % 250 + 1}"
            with self._hosts.open("a") as hosts:  # appends to the same file, which running pods have mounted
                names = f"{subdomain}.{pod.namespace}.svc {subdomain} {pod.hostname}"
                hosts.write(f"{self._addresses[pod.hostname]} {names}\n")
        return True

    def address(self, pod: Pod) -> str:
        return self._addresses[pod.hostname]

    def start(self) -> None:
        (self.folder / "layers").mkdir()
        self._hosts.write_text("127.0.0.1 localhost\n")
        self._server = serve(self)
        entry = {
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self._server.server_port}"}}],
            "users": [{"name": "test", "user": {"token": self.token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE}}],
        }
        self.kubeconfig.write_text(
            yaml.dump({"apiVersion": "v1", "kind": "Config", "current-context": "test", **entry})
        )
        self._controller.start()

    def stop(self) -> None:
        """Kills all running pods."""
        with self.lock:
            for key in list(self.jobs):
                self.delete_job(*key)
            self.kueue.workloads.clear()
            self.jobsets.clear()
            for pod in self.pods.values():
                pod.deleted_at, pod.held = "", False
                pod.delete(0)
        for _ in range(200):
            if not self.pods or self._ended.wait(0.05):
                break
        self._ended.set()
        self._controller.join()
        self._server.shutdown()
        self._server.server_close()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._ended.wait(_POLL_SECONDS):
                with self.lock:
                    self._step()
        except BaseException as error:  # `stop` raises it
            self._failure = error
            self._ended.set()
            raise

    def _step(self) -> None:
        self._evict_from_lost_nodes()
        self.kueue.act()
        jobs = [*self.jobs.values(), *self.jobsets.values()]
        owners = {id(pod): job for job in jobs for pod in job.pods.values()}
        for key, pod in list(self.pods.items()):
            job = owners.get(id(pod))
            if pod.observe() and job:
                if pod.phase == "Failed":
                    job.handle("PodFailed", pod)
                elif all(each.phase == "Succeeded" for each in job.pods.values() if each.task == pod.task):
                    job.handle("TaskCompleted", pod)
            if pod.gone:
                self.past.append(self.pods.pop(key))
                if job:
                    del job.pods[pod.name]
                    job.handle("PodEvicted", pod)
        for job in jobs:
            job.act()
            waiting = [pod for pod in job.pods.values() if pod.phase == "Pending"]
            ready = [name for name, since in self.nodes.items() if not since]
            if (
                ready
                and len(job.pods) >= job.gang
                and all(set(p.claims.values()) <= set(self.claims) and p.secrets <= set(self.secrets) for p in waiting)
            ):
                for number, pod in enumerate(waiting):
                    pod.node = ready[number % len(ready)]
                    pod.start(self.folder / "layers", self._hosts, self.image, self.claims, self.secrets)
                    job.act()


def _toleration(spec: dict) -> float:
    """Seconds for which a pod stays bound to a node that is out of reach."""
    for each in spec.get("tolerations") or []:
        if each.get("key") in (UNREACHABLE, None) and each.get("effect") in ("NoExecute", None):
            return each.get("tolerationSeconds", float("inf"))
    return TOLERATION_SECONDS


@contextlib.contextmanager
def running(folder: Path, image: Mapping[str, str]) -> Iterator[Cluster]:
    """A cluster with all its files below `folder`, and pods with the environment `image`; stopped at the end."""
    cluster = Cluster(folder, image)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()
