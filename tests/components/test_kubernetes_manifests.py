"""What the components send to Kubernetes: manifests valid by its schemas, with all a training needs."""

import copy
import sys
from pathlib import Path

import pytest
import yaml
from deit_fast.components import deit
from torchx.runner import get_runner

pytest.importorskip("kubernetes", reason="needs the client of Kubernetes, from the extra: test")
pytest.importorskip("kubernetes_validate", reason="needs the extra: test")

from tests.kubernetes.manifests import check_job, check_pods

FILE = Path(deit.__file__)
WORDS = [
    *("--recipe", "deit3_base_1k_192", "--data", "/data/imagenet", "--out", "/runs/base", "-j", "2x8", "-h", "h100"),
    *("--image", "registry.example.org/team/deit_fast:latest", "--env", "HF_HOME=/runs/hf", "--max_retries", "20"),
    *("--mounts", "type=volume,src=imagenet,dst=/data,readonly,type=volume,src=runs,dst=/runs"),
]


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
    assert not check_pods(job, version)
    wrong = copy.deepcopy(job)
    wrong["spec"]["tasks"][1]["template"]["spec"]["containers"][0]["volumeMount"] = []
    (found,) = check_pods(wrong, version)
    assert "train-1" in found
    assert "volumeMount" in found


def spoil_name(job: dict) -> None:
    job["metadata"]["name"] = "x" * 60


def spoil_field(job: dict) -> None:
    job["spec"]["tasks"][0]["retries"] = 1


def spoil_policy(job: dict) -> None:
    job["spec"]["tasks"][0]["policies"][0]["action"] = "Restart"


def test_the_job_is_volcanos(job: dict) -> None:
    assert not check_job(job)
    assert all(task["replicas"] == 1 for task in job["spec"]["tasks"])
    for spoil in (spoil_name, spoil_field, spoil_policy):
        wrong = copy.deepcopy(job)
        spoil(wrong)
        assert check_job(wrong)


def test_a_training_has_what_it_needs(job: dict) -> None:
    spec = job["spec"]
    assert (spec["schedulerName"], spec["queue"], spec["priorityClassName"]) == ("volcano", "default", "high")
    assert spec["maxRetry"] == 20
    assert [task["name"] for task in spec["tasks"]] == ["train-0", "train-1"]
    for task in spec["tasks"]:
        assert task["policies"] == [
            *({"exitCode": status, "action": "TerminateJob"} for status in (2, 3, 65, 71, 130)),
            {"event": "PodEvicted", "action": "RestartJob"},
            {"event": "PodFailed", "action": "RestartJob"},
        ]
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


def test_a_pod_is_given_the_time_torchrun_takes(job: dict) -> None:
    for task in job["spec"]["tasks"]:
        pod = task["template"]["spec"]
        environment = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
        assert pod["terminationGracePeriodSeconds"] > int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])


def test_an_overlay_is_laid_over_the_pod_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By TorchX 0.7.0, which knows none, as by a nightly."""
    overlay = tmp_path / "pod.yaml"
    overlay.write_text(
        "metadata: {labels: {team: vision}}\n"
        "spec: {tolerations: [{key: nvidia.com/gpu, operator: Exists}], imagePullSecrets: [{name: registry}]}"
    )
    words, cfg = [*WORDS, "--overlay", str(overlay)], {"queue": "q", "validate_spec": False}
    with get_runner() as runner, pytest.warns(UserWarning, match="restarts"):
        info = runner.dryrun_component(f"{FILE}:pretrain", words, "kubernetes", cfg)
    job = yaml.safe_load(str(info.request))
    assert not check_pods(job, "1.34")
    for task in job["spec"]["tasks"]:
        pod = task["template"]
        assert pod["metadata"]["labels"]["team"] == "vision"
        assert "torchx.pytorch.org/role-name" in pod["metadata"]["labels"]
        assert pod["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["spec"]["terminationGracePeriodSeconds"] == 120
        assert len(pod["spec"]["containers"]) == 1
    for text in ("spec: [", "tolerations: []", "spec: 3", ""):
        overlay.write_text(text)
        with pytest.raises(SystemExit):
            deit.pretrain(recipe="demo_pretrain", data="d", out="o", overlay=str(overlay))
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        deit.pretrain(recipe="demo_pretrain", data="d", out="o", overlay=str(tmp_path / "absent.yaml"))
