"""Jobs of the TorchX components on the test cluster: submitted, watched, disturbed."""

import re
from dataclasses import dataclass
from pathlib import Path

from kubernetes import client, config

from tests.conftest import ROOT
from tests.kubernetes.cluster import NAMESPACE, QUEUE, Cluster
from tests.kubernetes.pods import Pod
from tests.kubernetes.volcano import FINISHED
from tests.runs import COMPONENTS, Run, run_torchx

CFG = f"namespace={NAMESPACE},queue={QUEUE},service_account=trainer,priority_class=high"
MOUNTS = "type=volume,src=imagenet,dst=/data,readonly,type=volume,src=runs,dst=/runs"


@dataclass
class Job(Run):
    """A training on two pods, one process each."""

    cluster: Cluster
    out: Path
    handle: str

    @property
    def name(self) -> str:
        return self.handle.rpartition(":")[2]

    @property
    def api(self) -> client.ApiClient:
        return config.new_client_from_config(str(self.cluster.kubeconfig))

    def status(self) -> dict:
        """The job's status as the API shows it; empty until the controller has seen the job."""
        try:
            found = client.CustomObjectsApi(self.api).get_namespaced_custom_object(
                "batch.volcano.sh", "v1alpha1", NAMESPACE, "jobs", self.name
            )
        except client.ApiException as error:
            if error.status != 404:
                raise
            return {"state": {"phase": "gone"}}
        return found.get("status", {})

    def states(self) -> list[str]:
        return [self.status().get("state", {}).get("phase", "")]

    def pods(self) -> list[Pod]:
        """Its pods in the order of their start, including deleted ones."""
        with self.cluster.lock:
            every = [*self.cluster.past, *self.cluster.pods.values()]
        return [pod for pod in every if pod.manifest["metadata"]["labels"].get("volcano.sh/job-name") == self.name]

    def running(self) -> list[Pod]:
        return [pod for pod in self.pods() if pod.phase == "Running"]

    def present(self) -> list[Pod]:
        """Pods that run and have not been told to end, by name."""
        return sorted((pod for pod in self.running() if not pod.deleted_at), key=lambda pod: pod.name)

    def evict(self, pod: Pod) -> None:
        """Evicts a pod as `kubectl drain` does."""
        eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod.name, namespace=NAMESPACE))
        client.CoreV1Api(self.api).create_namespaced_pod_eviction(pod.name, NAMESPACE, eviction)

    def wait(self, seconds: float = 240) -> str:
        """Waits for the job's end; returns its phase."""
        self.wait_until(lambda: set(self.states()) <= {*FINISHED, "gone"}, seconds, "the job's end")
        return self.states()[0]

    def log(self) -> str:
        return b"".join(pod.log() for pod in self.pods()).decode()


def torchx(cluster: Cluster, *words: str) -> str:
    return run_torchx(*words, cwd=ROOT, environment=cluster.image | {"KUBECONFIG": str(cluster.kubeconfig)})


def submit(
    cluster: Cluster, name: str, *words: str, retries: int = 5, mounts: str = MOUNTS, within: str = "/runs"
) -> Job:
    """Starts a training whose folder is `within`/`name` in its two pods."""
    printed = torchx(
        cluster, "run", "-s", "kubernetes", "-cfg", CFG, f"{COMPONENTS}:pretrain", "--recipe", "demo_pretrain",
        "--data", "/data/digits", "--out", f"{within}/{name}", "-j", "2x1", "-h", "cpu_small",
        "--mounts", mounts, "--max_retries", str(retries), *words,
    )  # fmt: skip
    return Job(cluster, cluster.claims["runs"] / name, re.findall(r"kubernetes://\S+", printed)[0])
