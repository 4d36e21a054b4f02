"""Nodes that vanish: what Kubernetes and Volcano do by themselves, and what only somebody else can do."""

import time
from collections.abc import Callable, Iterator

import pytest
from kubernetes import client
from torchx.runner import Runner

from tests.kubernetes.cluster import NAMESPACE, NODES, Cluster
from tests.kubernetes.jobs import Job
from tests.kubernetes.pods import Pod
from tests.kubernetes.test_stand_in import runner as runner
from tests.kubernetes.test_stand_in import shell, submit

pytestmark = pytest.mark.filterwarnings(r"ignore:\s*Role a configured with restarts")
# The second start is to end well; there is a mark for each pod of the first.
SCRIPT = "mkdir /runs/$0-${replica_id} && { trap 'exit 1' TERM; sleep 300 & wait; }; echo again"


@pytest.fixture(autouse=True)
def nodes(cluster: Cluster) -> Iterator[None]:
    yield
    with cluster.lock:
        cluster.nodes.update(dict.fromkeys(NODES, 0.0))


def start(cluster: Cluster, runner: Runner, mark: str, seconds: int | None) -> tuple[Job, Pod]:
    """A job, and its pod on the second node, which tolerates the loss of its node for so many seconds."""
    app = shell(SCRIPT.replace("$0", mark), retries=3, pods=2)
    job = submit(cluster, runner, app, tolerate=seconds)
    job.wait_until(lambda: job.states() == ["Running"] and len(job.running()) == 2, 20, "its pods")
    job.wait_until(lambda: len(list(job.out.glob(f"{mark}-*"))) == 2, 20, "their first line")
    return job, next(pod for pod in job.pods() if pod.node == NODES[1])


def delete_the_node(job: Job, pod: Pod) -> None:
    client.CoreV1Api(job.api).delete_node(pod.node)


def delete_the_pod_by_force(job: Job, pod: Pod) -> None:
    client.CoreV1Api(job.api).delete_namespaced_pod(pod.name, NAMESPACE, grace_period_seconds=0)


@pytest.mark.parametrize("mend", [delete_the_node, delete_the_pod_by_force])
def test_a_job_on_a_lost_node_goes_on_once_its_pod_is_gone(
    cluster: Cluster, runner: Runner, mend: Callable[[Job, Pod], None]
) -> None:
    job, pod = start(cluster, runner, mend.__name__, seconds=1)
    cluster.lose_node(pod.node)
    (lost,) = (each for each in client.CoreV1Api(job.api).list_node().items if each.spec.taints)
    assert (lost.metadata.name, lost.status.conditions[0].status) == (pod.node, "Unknown")
    job.wait_until(lambda: pod.deleted_at, 20, "the eviction of its pod")
    shown = client.CoreV1Api(job.api).read_namespaced_pod(pod.name, NAMESPACE)
    assert (shown.status.phase, shown.status.conditions[0].reason) == ("Running", "DeletionByTaintManager")
    assert shown.metadata.deletion_timestamp
    time.sleep(1)  # some rounds of the controller
    assert job.status()["terminating"] == 1
    assert "retryCount" not in job.status()

    mend(job, pod)
    assert job.wait(30) == "Completed"
    assert job.status()["retryCount"] == 1
    assert {each.node for each in job.pods()[2:]} == {NODES[0]}


def test_a_pod_stays_bound_to_a_lost_node_as_long_as_it_tolerates_that(cluster: Cluster, runner: Runner) -> None:
    job, pod = start(cluster, runner, "bound", seconds=None)
    cluster.lose_node(pod.node)
    time.sleep(1.5)
    assert not pod.deleted_at
    assert job.states() == ["Running"]
    runner.cancel(job.handle)
    delete_the_pod_by_force(job, pod)
    job.wait_until(lambda: not job.running() or set(job.pods()) <= set(cluster.past), 40, "the end of its pods")
