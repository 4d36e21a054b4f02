"""Jobs of a line of shell in a queue of Kueue on the stand-in: preempted, restarted, exhausted, on a lost node."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator

import pytest
import yaml
from deit_fast.components.kueue import build_request
from deit_fast.components.manifests.pods import Place
from kubernetes import client, config
from torchx.runner import Runner
from torchx.specs import AppDef, AppState, Resource, Role, VolumeMount

from tests.kubernetes.cluster import NAMESPACE, NODES, Cluster
from tests.kubernetes.jobset import JobSet
from tests.kubernetes.pods import Pod
from tests.kubernetes.test_stand_in import runner as runner
from tests.kubernetes.volcano import FINISHED

CFG = {"namespace": NAMESPACE, "queue": "gpus"}
ENDLESS = "trap 'exit 75' TERM; echo started; while :; do sleep 0.1; done"
"""Ends as a training does that is told to: in order, with work left."""


@pytest.fixture(autouse=True)
def afterwards(cluster: Cluster) -> Iterator[None]:
    yield
    with cluster.lock:
        cluster.nodes.update(dict.fromkeys(NODES, 0.0))
        for namespace, name in list(cluster.jobsets):
            kind = "train_jobs" if (namespace, name) in cluster.train_jobs else "jobsets"
            cluster.delete_object(namespace, name, kind)
        for pod in cluster.pods.values():
            pod.delete(0)
        cluster.runtimes.clear()


def shell(script: str, retries: int = 3, pods: int = 1, cpu: float = 1) -> AppDef:
    role = Role(
        name="a", image="none", entrypoint="bash", args=["-c", script], num_replicas=pods, max_retries=retries,
        resource=Resource(cpu=cpu, gpu=0, memMB=100), mounts=[VolumeMount(src="runs", dst_path="/runs")],
        metadata={"kubernetes": {"V1Pod": {"spec": {"terminationGracePeriodSeconds": 2}}}},
    )  # fmt: skip
    return AppDef(name="shell", roles=[role])


class Submitted:
    def __init__(self, cluster: Cluster, runner: Runner, app: AppDef, **cfg: str) -> None:
        self.cluster, self.runner = cluster, runner
        self.handle = runner.run(app, "kueue", CFG | cfg)
        self.name = self.handle.rpartition(":")[2]
        self.jobset: JobSet = cluster.jobsets[NAMESPACE, self.name]

    @property
    def state(self) -> AppState:
        status = self.runner.status(self.handle)
        assert status is not None
        return status.state

    @property
    def message(self) -> str:
        status = self.runner.status(self.handle)
        assert status is not None
        return status.msg

    def pods(self) -> list[Pod]:
        """In order of their start, those that are gone, too."""
        with self.cluster.lock:
            every = [*self.cluster.past, *self.cluster.pods.values()]
        label = "jobset.sigs.k8s.io/jobset-name"
        return [pod for pod in every if pod.manifest["metadata"]["labels"].get(label) == self.name]

    def running(self) -> list[Pod]:
        """Those that have printed a line, and have not been told to end."""
        return [pod for pod in self.pods() if pod.phase == "Running" and not pod.deleted_at and pod.lines]

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}: {self.jobset.to_json()['status']}"
            time.sleep(0.05)

    def wait_for(self, state: AppState) -> None:
        self.wait(lambda: self.state is state, state.name)


@pytest.mark.parametrize("kind", ["jobset", "trainjob"])
def test_a_job_runs_in_a_queue(cluster: Cluster, runner: Runner, kind: str) -> None:
    cluster.secrets["s3"] = {"AWS_PROFILE": "research"}
    script = "hostname; echo rank $DEIT_FAST_RANK0 restarts $DEIT_FAST_RESTARTS index ${replica_id} $AWS_PROFILE"
    job = Submitted(cluster, runner, shell(script, pods=2), kind=kind, secrets="s3")
    job.wait_for(AppState.SUCCEEDED)
    for index in (0, 1):
        lines = [line.rstrip() for line in runner.log_lines(job.handle, "a", index)]
        first = "localhost" if index == 0 else f"{job.name}-node-0-0.{job.name}"
        assert lines == [f"{job.name}-node-0-{index}", f"rank {first} restarts 0 index {index} research"]
    status = runner.status(job.handle)
    assert [replica.state for replica in status.roles[0].replicas] == [AppState.SUCCEEDED] * 2
    described = runner.describe(job.handle)
    assert [(role.name, role.num_replicas) for role in described.roles] == [("a", 2)]
    assert [(each.app_handle, each.state) for each in runner.list("kueue")] == [(job.handle, AppState.SUCCEEDED)]


@pytest.mark.parametrize("kind", ["jobset", "trainjob"])
def test_a_cancelled_job_ends_in_order(cluster: Cluster, runner: Runner, kind: str) -> None:
    job = Submitted(cluster, runner, shell(ENDLESS, pods=2), kind=kind)
    job.wait(lambda: len(job.running()) == 2, "its pods")
    assert len(cluster.runtimes) == (kind == "trainjob")
    runner.cancel(job.handle)
    assert runner.status(job.handle) is None
    assert not cluster.runtimes
    job.wait(lambda: all(pod.phase == "Failed" for pod in job.pods()), "the end of its pods")
    assert [pod.exit_code for pod in job.pods()] == [75, 75]
    runner.cancel(job.handle)  # of what is gone


def test_one_waits_for_the_other_and_says_why(cluster: Cluster, runner: Runner) -> None:
    first = Submitted(cluster, runner, shell(ENDLESS, pods=2, cpu=3))
    first.wait(lambda: len(first.running()) == 2, "its pods")
    second = Submitted(cluster, runner, shell("true", cpu=3))
    second.wait(lambda: "insufficient unused quota for cpu" in second.message, "Kueue's word")
    assert (first.state, second.state) == (AppState.RUNNING, AppState.PENDING)
    assert second.pods() == []
    absent = Submitted(cluster, runner, shell("true"), queue="absent")
    absent.wait(lambda: "LocalQueue absent doesn't exist" in absent.message, "Kueue's word")
    runner.cancel(first.handle)
    second.wait_for(AppState.SUCCEEDED)
    assert [pod.exit_code for pod in first.pods()] == [75, 75]


def test_a_preempted_job_waits_and_goes_on_without_a_retry(cluster: Cluster, runner: Runner) -> None:
    again = f"if mkdir /runs/preempted-${{replica_id}}; then {ENDLESS}; fi"
    job = Submitted(cluster, runner, shell(again, retries=0, pods=2, cpu=3))
    job.wait(lambda: len(job.running()) == 2, "its pods")
    urgent = Submitted(cluster, runner, shell("sleep 1", cpu=3), priority_class="urgent")
    job.wait_for(AppState.PENDING)
    assert "Preempted" in job.message
    urgent.wait_for(AppState.SUCCEEDED)
    job.wait_for(AppState.SUCCEEDED)
    assert sorted(pod.exit_code for pod in job.pods()) == [0, 0, 75, 75]
    assert (job.jobset.restarts, runner.status(job.handle).num_restarts) == (0, 0)


FAILED = "jobset failed due to"


@pytest.mark.parametrize(
    ("status", "starts", "message"),
    [(2, 1, f"{FAILED} FailJobSet"), (3, 1, f"{FAILED} FailJobSet"), (65, 1, f"{FAILED} FailJobSet"),
     (130, 1, f"{FAILED} FailJobSet"), (1, 3, f"{FAILED} reaching max"), (137, 3, f"{FAILED} reaching max")],
)  # fmt: skip
def test_a_failure_ends_or_restarts_the_whole_set(
    cluster: Cluster, runner: Runner, status: int, starts: int, message: str
) -> None:
    script = f"[ ${{replica_id}} = 0 ] && exit {status}; {ENDLESS}"
    job = Submitted(cluster, runner, shell(script, retries=2, pods=2))
    job.wait_for(AppState.FAILED)
    assert message in job.message
    assert len(job.pods()) == 2 * starts
    counts = [pod.manifest["metadata"]["annotations"]["jobset.sigs.k8s.io/restart-attempt"] for pod in job.pods()]
    assert sorted(counts) == sorted(str(start) for start in range(starts) for _ in range(2))
    runner_status = runner.status(job.handle)
    assert runner_status.num_restarts == starts - 1


def test_evictions_take_no_retries(cluster: Cluster, runner: Runner) -> None:
    script = "n=$(ls /runs/evicted | wc -l); touch /runs/evicted/$HOSTNAME-$n; [ $n -ge 8 ] || { " + ENDLESS + "; }"
    (cluster.claims["runs"] / "evicted").mkdir()
    job = Submitted(cluster, runner, shell(script.replace("$", "$$"), retries=1, pods=2))
    for start in range(4):
        job.wait(lambda: len(job.running()) == 2, f"start {start}")
        eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=job.running()[1].name, namespace=NAMESPACE))
        api = client.CoreV1Api(config.new_client_from_config(str(cluster.kubeconfig)))
        api.create_namespaced_pod_eviction(eviction.metadata.name, NAMESPACE, eviction)
        job.wait(lambda: job.jobset.restarts == start + 1, f"restart {start + 1}")  # noqa: B023
    job.wait_for(AppState.SUCCEEDED)
    assert (job.jobset.restarts, job.jobset.counted) == (4, 0)


def test_a_lost_node_holds_the_set_until_somebody_acts(cluster: Cluster, runner: Runner) -> None:
    script = "if mkdir /runs/lost-${replica_id}; then [ ${replica_id} = 1 ] || sleep 3; " + ENDLESS + "; fi"
    hung = script.replace(ENDLESS, "[ ${replica_id} = 1 ] || exit 70; " + ENDLESS)
    job = Submitted(cluster, runner, shell(hung, pods=2))
    job.wait(lambda: [pod.index for pod in job.running()] == [1], "its second pod")
    (lost,) = job.running()
    cluster.lose_node(lost.node)
    job.wait(lambda: job.jobset.failing and lost.deleted_at, "the end of the first pod")
    time.sleep(0.5)  # some rounds of the controllers
    assert (job.jobset.restarts, lost.phase, job.state) == (0, "Running", AppState.PENDING)
    api = client.CoreV1Api(config.new_client_from_config(str(cluster.kubeconfig)))
    api.delete_namespaced_pod(lost.name, NAMESPACE, grace_period_seconds=0)
    job.wait_for(AppState.SUCCEEDED)
    assert job.jobset.counted == 1
    assert {pod.node for pod in job.pods()[2:]} == {*NODES} - {lost.node}


def test_a_log_is_followed_over_a_restart(cluster: Cluster, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deit_fast.components.cluster.FOLLOW_SECONDS", 0.2)
    script = "echo one; sleep 1; if mkdir /runs/follow 2>/dev/null; then exit 1; fi; echo two"
    job = Submitted(cluster, runner, shell(script))
    lines = [line.rstrip() for line in runner.log_lines(job.handle, "a", should_tail=True)]
    assert lines == ["one", "one", "two"]


def test_the_api_refuses(
    cluster: Cluster, runner: Runner, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a line."""

    def refuse(job: object, message: str) -> None:
        with pytest.raises(SystemExit):
            runner.schedule(job)
        said = capsys.readouterr().err
        assert message in said
        assert said.startswith("deit-fast: kueue: ")
        assert said.count("\n") == 1

    for change, message in (
        (lambda job: job.request.resource["spec"].update(retries=1), "'retries' was unexpected"),
        (lambda job: job.request.resource["metadata"].update(name="x" * 60), "label of RFC 1035"),
        (lambda job: job.request.resource["metadata"].update(namespace="absent"), 'namespaces "absent" not found'),
    ):
        job = runner.dryrun(shell("true", pods=2), "kueue", CFG)
        change(job)
        refuse(job, message)
    job = runner.dryrun(shell("true"), "kueue", CFG | {"kind": "trainjob"})
    job.request.resource["spec"]["trainer"]["numNode"] = 1
    refuse(job, "'numNode' was unexpected")
    assert not cluster.runtimes  # which was created before
    for cfg, app in ((CFG | {"kind": "volcano"}, shell("true")), (CFG, AppDef("two", shell("true").roles * 2))):
        with pytest.raises(SystemExit):
            runner.dryrun(app, "kueue", cfg)
    job = runner.dryrun(shell("true"), "kueue", CFG)
    capsys.readouterr()
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "/absent")
    refuse(job, "ConfigException")


def test_kubectl_apply_takes_the_manifest(cluster: Cluster, tmp_path: object) -> None:
    """As kubectl does, document by document."""
    from deit_fast.components.manifest import render

    words = ["--namespace=research", "--queue=gpus", "--recipe=demo_pretrain", "--data=/absent", "--out=/runs/applied"]
    api = client.CustomObjectsApi(config.new_client_from_config(str(cluster.kubeconfig)))
    for kind in ("jobset", "trainjob", "volcano"):
        for each in yaml.safe_load_all(render("pretrain", [f"--as={kind}", "--queue=default", *words[:1], *words[2:]])):
            group, _, version = each["apiVersion"].partition("/")
            plural = f"{each['kind'].lower()}s"
            api.create_namespaced_custom_object(group, version, NAMESPACE, plural, json.loads(json.dumps(each)))
        with contextlib.suppress(KeyError):
            cluster.delete_object(NAMESPACE, "demo-pretrain", "train_jobs" if kind == "trainjob" else "jobsets")
    cluster.delete_job(NAMESPACE, "demo-pretrain")


def test_volcano_runs_its_manifest(cluster: Cluster) -> None:
    """It starts again once, after a failure, and its pods know it."""
    script = (
        "echo index ${replica_id} first $$DEIT_FAST_RANK0 restarts $$DEIT_FAST_RESTARTS;"
        "mkdir /runs/volcano-${replica_id} || exit 0; [ ${replica_id} = 0 ] || exit 1; exec sleep 60"
    )
    request = build_request(shell(script, retries=1, pods=2), "volcano", Place(NAMESPACE, "default"), "shell")
    job = cluster.create_job(NAMESPACE, request.resource)
    deadline = time.monotonic() + 60
    while job.phase not in FINISHED:
        assert time.monotonic() < deadline, job.to_json()["status"]
        time.sleep(0.05)
    assert (job.phase, job.retries) == ("Completed", 1)
    with cluster.lock:
        pods = [pod for pod in [*cluster.past, *cluster.pods.values()] if pod.name.startswith("shell-node-")]
        cluster.delete_job(NAMESPACE, "shell")
    first = {"0": "localhost", "1": "shell-node-0.shell"}
    lines = [f"index {index} first {first[index]} restarts {start}" for start in (0, 1) for index in "01"]
    assert sorted(pod.lines[0][1].decode().rstrip() for pod in pods) == sorted(lines)
