"""What the components send to Kubernetes: manifests valid by its schemas, with all a training needs."""

import copy
import sys
from pathlib import Path

import pytest
import yaml
from deit_fast.components import deit
from torchx.runner import get_runner

pytest.importorskip("kubernetes", reason="needs the client of Kubernetes, from the extra: test")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs the extra: test")

FILE = Path(deit.__file__)
WORDS = [
    *("--recipe", "deit3_base_1k_192", "--data", "/data/imagenet", "--out", "/runs/base", "-j", "2x8", "-h", "h100"),
    *("--image", "registry.example.org/team/deit_fast:latest", "--env", "HF_HOME=/runs/hf", "--max_retries", "20"),
    *("--mounts", "type=volume,src=imagenet,dst=/data,readonly,type=volume,src=runs,dst=/runs"),
]
# The fields of Volcano's batch.volcano.sh/v1alpha1 Job.
JOB = {"schedulerName", "minAvailable", "volumes", "tasks", "policies", "plugins", "runningEstimate", "queue",
       "maxRetry", "ttlSecondsAfterFinished", "priorityClassName", "minSuccess"}  # fmt: skip
TASK = {"name", "replicas", "minAvailable", "template", "policies", "topologyPolicy", "maxRetry", "dependsOn"}
ACTIONS = {"AbortJob", "RestartJob", "RestartTask", "TerminateJob", "CompleteJob", "ResumeJob"}
EVENTS = {"PodFailed", "PodEvicted", "PodPending", "JobUnknown", "OutOfSync", "CommandIssued", "TaskCompleted", "*"}


@pytest.fixture(scope="module")
def job() -> dict:
    cfg = {
        "namespace": "research",
        "queue": "default",
        "service_account": "trainer",
        "priority_class": "high",
        "validate_spec": False,
    }  # which nightlies of TorchX would have a cluster do, even for a dry run
    with get_runner() as runner, pytest.warns(UserWarning, match="restarts"):
        info = runner.dryrun_component(f"{FILE}:pretrain", WORDS, "kubernetes", cfg)
    return yaml.safe_load(str(info.request))


@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_each_pod_is_valid(job: dict, version: str) -> None:
    for task in job["spec"]["tasks"]:
        pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(task["template"])}
        pod["metadata"]["name"] = f"{job['metadata']['name']}-{task['name']}-0"
        assert len(pod["metadata"]["name"]) <= 63
        kubernetes_validate.validate(pod, version, strict=True)
        pod["spec"]["containers"][0]["volumeMount"] = []
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(pod, version, strict=True)


def test_the_job_is_volcanos(job: dict) -> None:
    assert (job["apiVersion"], job["kind"]) == ("batch.volcano.sh/v1alpha1", "Job")
    assert job["spec"].keys() <= JOB
    for task in job["spec"]["tasks"]:
        assert task.keys() <= TASK
        assert task["replicas"] == 1
        for policy in task["policies"]:
            assert policy["action"] in ACTIONS
            assert policy["event"] in EVENTS


def test_a_training_has_what_it_needs(job: dict) -> None:
    spec = job["spec"]
    assert (spec["schedulerName"], spec["queue"], spec["priorityClassName"]) == ("volcano", "default", "high")
    assert spec["maxRetry"] == 20
    assert [task["name"] for task in spec["tasks"]] == ["train-0", "train-1"]
    for task in spec["tasks"]:
        assert {policy["event"]: policy["action"] for policy in task["policies"]} == {
            "PodEvicted": "RestartJob",
            "PodFailed": "RestartJob",
        }
        pod = task["template"]["spec"]
        assert (pod["serviceAccountName"], pod["restartPolicy"]) == ("trainer", "Never")
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        }
        shared_memory = [volume["name"] for volume in pod["volumes"] if volume.get("emptyDir", {}).get("medium")]
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: (mount["name"], mount.get("readOnly")) for mount in container["volumeMounts"]}
        assert mounts["/dev/shm"][0] in shared_memory
        assert claims[mounts["/data"][0]] == "imagenet"
        assert mounts["/data"][1]
        assert claims[mounts["/runs"][0]] == "runs"
        assert not mounts["/runs"][1]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        assert environment["HF_HOME"] == "/runs/hf"
        assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "100"
        script = container["command"][-1]
        assert "--nnodes 2 --nproc-per-node 8" in script
        assert job["metadata"]["name"] in script.partition("--rdzv-id")[2]
        assert script.count(sys.prefix) <= 1  # this machine's torchrun, where that exists


def test_the_nodes_meet_at_the_first(job: dict) -> None:
    first, second = (task["template"]["spec"]["containers"][0] for task in job["spec"]["tasks"])
    assert "${TORCHX_RANK0_HOST:=localhost}" in first["command"][-1]
    assert {"name": "TORCHX_RANK0_HOST", "value": "localhost"} in first["env"]
    assert "${VC_TRAIN_0_HOSTS:=localhost}" in second["command"][-1]


def test_a_pod_is_given_the_time_torchrun_takes() -> None:
    """TorchX nightlies lay Role.metadata["kubernetes"]["V1Pod"] over the pod."""
    role = deit.pretrain(recipe="demo_pretrain", data="d", out="o").roles[0]
    seconds = role.metadata["kubernetes"]["V1Pod"]["spec"]["terminationGracePeriodSeconds"]
    assert seconds > int(role.env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
