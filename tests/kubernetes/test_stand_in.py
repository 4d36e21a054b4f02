"""What the stand-in for Kubernetes does with jobs of a line of shell, and the pipelines' log of them."""

import io
import signal
import time
from collections.abc import Iterator

import pytest
from kubernetes import client
from torchx.runner import Runner, get_runner
from torchx.specs import AppDef, AppState, Resource, Role, VolumeMount

from pipelines.logs import follow_log
from pipelines.schedulers import find_scheduler
from pipelines.state import Record
from tests.kubernetes.cluster import NAMESPACE, QUEUE, UNREACHABLE, Cluster
from tests.kubernetes.jobs import Job

CFG = {"namespace": NAMESPACE, "queue": QUEUE}


@pytest.fixture
def runner(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    # The client takes the file's name when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(cluster.kubeconfig))
    with get_runner() as started:
        yield started


def shell(script: str, retries: int = 0, pods: int = 1) -> AppDef:
    role = Role(
        name="a", image="none", entrypoint="bash", args=["-c", script], num_replicas=pods, max_retries=retries,
        resource=Resource(cpu=1, gpu=0, memMB=100), mounts=[VolumeMount(src="runs", dst_path="/runs")],
    )  # fmt: skip
    return AppDef(name="shell", roles=[role])


def submit(cluster: Cluster, runner: Runner, app: AppDef, grace: int | None = None, tolerate: int | None = None) -> Job:
    """grace, tolerate: seconds to end in, and on a node that cannot be reached."""
    job = runner.dryrun(app, "kubernetes", CFG)
    where = {"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute"}
    for task in job.request.resource["spec"]["tasks"]:
        task["template"].spec.termination_grace_period_seconds = grace
        if tolerate is not None:
            task["template"].spec.tolerations = [client.V1Toleration(**where, toleration_seconds=tolerate)]
    return Job(cluster, cluster.claims["runs"], runner.schedule(job))


@pytest.mark.filterwarnings(r"ignore:\s*Role a configured with restarts")
def test_a_log_is_followed_over_a_restart(cluster: Cluster, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deit_fast.components.cluster.FOLLOW_SECONDS", 0.2)
    script = "echo one; until [ -e /runs/go ]; do sleep 0.1; done; if mkdir /runs/mark; then exit 3; fi; echo two"
    job = submit(cluster, runner, shell(script, retries=3))
    record = Record("running", "", [], job.handle, "a", 1, 1, time.time())
    stream = io.StringIO()
    scheduler = find_scheduler("kubernetes")
    ended = lambda: scheduler.state(runner, job.handle) is AppState.SUCCEEDED  # noqa: E731
    (thread,) = follow_log(runner, "a", record, stream, ended)
    job.wait_until(lambda: stream.getvalue() == "a | one\n", 20, "the first line")
    (cluster.claims["runs"] / "go").touch()
    assert job.wait(30) == "Completed"
    thread.join(10)
    lines = [line for line in stream.getvalue().splitlines() if "mkdir" not in line]
    assert lines == ["a | one", "a | one", "a | two"]


@pytest.mark.parametrize(("grace", "status"), [(1, 128 + signal.SIGKILL), (20, 7)])
def test_a_pod_has_its_grace_period(cluster: Cluster, runner: Runner, grace: int, status: int) -> None:
    job = submit(cluster, runner, shell("trap 'sleep 3; exit 7' TERM; while :; do sleep 0.1; done"), grace)
    job.wait_until(job.running, 10, "its pod")
    time.sleep(0.5)
    runner.cancel(job.handle)
    job.wait_until(lambda: not job.running(), 10, "the pod's end")
    assert [pod.exit_code for pod in job.pods()] == [status]
    assert find_scheduler("kubernetes").state(runner, job.handle) is None


def test_without_a_policy_a_failure_ends_the_job(cluster: Cluster, runner: Runner) -> None:
    job = submit(cluster, runner, shell("exit ${replica_id}", pods=2))
    assert job.wait(20) == "Failed"
    assert sorted(pod.exit_code for pod in job.pods()) == [0, 1]


def test_what_a_pod_sees(cluster: Cluster, runner: Runner) -> None:
    script = (
        "hostname; echo $VC_A_0_HOSTS; getent hosts $VC_A_0_HOSTS | cut -c 1-5; touch /new; echo $BASHPID;"
        "df --output=fstype /dev/shm | tail -1"
    )
    job = submit(cluster, runner, shell(script, pods=2))
    assert job.wait(20) == "Completed"
    first = f"{job.name}-a-0-0"
    for pod in job.pods():
        assert pod.log().decode().split() == [pod.name, f"{first}.{job.name}", "127.1", "1", "tmpfs"]


def test_the_api_refuses(cluster: Cluster, runner: Runner) -> None:
    app = shell("true")
    with pytest.raises(client.ApiException, match="unable to find job queue"):
        runner.run(app, "kubernetes", CFG | {"queue": "absent"})
    for queue, message in (
        ("closed", "queue `closed` status is `Closed`"),
        ("department", "can only submit job to leaf queue, queue `department` has 1 child queues"),
        ("root", "can not submit job to root queue"),
    ):
        with pytest.raises(client.ApiException, match=message):
            runner.run(app, "kubernetes", CFG | {"queue": queue})
    with pytest.raises(client.ApiException, match='namespaces \\\\"absent\\\\" not found'):
        runner.run(app, "kubernetes", CFG | {"namespace": "absent"})
    app.roles[0].image = ""
    job = runner.dryrun(app, "kubernetes", CFG)
    job.request.resource["spec"]["tasks"][0]["maxRetries"] = 1
    with pytest.raises(client.ApiException, match=r"unknown field spec\.tasks\.maxRetries"):
        runner.schedule(job)
