"""`deit-fast manifest` and the scheduler kueue: objects valid by the projects' schemas, with what a training needs."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from deit_fast.components.manifest import render
from torchx.runner import get_runner
from torchx.schedulers import get_scheduler_factories

from pipelines.deit3 import PIPELINES, build_stages, main
from tests.conftest import ROOT

pytest.importorskip("kubernetes_validate", reason="needs the extra: test")

from tests.kubernetes.manifests import check_job, check_pods, check_rules
from tests.kubernetes.schemas import BEFORE, CURRENT, KUBERNETES, check

KINDS = ("jobset", "trainjob", "volcano")
MOUNTS = (
    "type=volume,src=imagenet,dst=/data,readonly,type=volume,src=runs,dst=/runs,type=bind,src=/scratch,dst=/scratch"
)
WHERE = ["-j", "2x8", "-h", "h100", "--image", "registry.example.org/team/deit_fast:1", "--mounts", MOUNTS]
STAGES = {
    "pretrain": ["--recipe", "deit3_base_1k_192", "--data", "/data/imagenet", "--out", "/runs/base",
                 "--env", "HF_HOME=/runs/hf,NCCL_IB_HCA='mlx5_0:1,mlx5_1:1'", "optim.lr=3e-3"],
    "finetune": ["--recipe", "deit3_base_1k_224_ft", "--init", "/runs/base/checkpoints/last.pt",
                 "--data", "s3://imagenet/shards", "--out", "/runs/224"],
    "evaluate": ["--checkpoint", "/runs/224/checkpoints/last.pt", "--data", "/data/val", "--out", "/runs/e.json"],
}  # fmt: skip
PLACE = ["--namespace=research", "--queue=gpus", "--priority-class=urgent", "--service-account=trainer",
         "--secrets=s3,hf"]  # fmt: skip


def objects(kind: str, stage: str = "pretrain", *words: str) -> list[dict]:
    return list(yaml.safe_load_all(render(stage, [f"--as={kind}", *PLACE, *WHERE, *words, *STAGES[stage]])))


@pytest.mark.parametrize(("versions", "kubernetes"), [*zip([BEFORE, CURRENT], KUBERNETES, strict=True)], ids=KUBERNETES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_object_of_each_stage_is_valid(kind: str, stage: str, versions: dict[str, str], kubernetes: str) -> None:
    made = objects(kind, stage)
    assert [each["kind"] for each in made] == {
        "jobset": ["JobSet"], "trainjob": ["TrainingRuntime", "TrainJob"], "volcano": ["Job"]
    }[kind]  # fmt: skip
    for each in made:
        assert check(each, versions, kubernetes) == []
        assert (check_job(each) + check_pods(each, kubernetes) if kind == "volcano" else check_rules(each)) == []
        assert len(json.dumps(each)) < 2**18  # etcd takes 1.5 MiB


def in_template(each: dict) -> dict:
    spec = each["spec"]
    return spec["tasks"][0]["template"] if "tasks" in spec else job_of(each)["template"]


def job_of(each: dict) -> dict:
    spec = each["spec"]["template"]["spec"] if each["kind"] == "TrainingRuntime" else each["spec"]
    return spec["replicatedJobs"][0]["template"]["spec"]


SPOILS: list[tuple[str, Callable[[dict], object], str]] = [
    ("jobset", lambda each: each["spec"].update(retries=3), "retries"),
    ("jobset", lambda each: each["spec"]["failurePolicy"]["rules"][0].update(action="Fail"), "Fail"),
    ("jobset", lambda each: job_of(each).update(backoffLimits=1), "backoffLimits"),
    ("jobset", lambda each: in_template(each)["spec"].update(volume=[]), "volume"),
    ("jobset", lambda each: in_template(each)["spec"]["containers"][0]["env"][0].update(values="x"), "values"),
    ("jobset", lambda each: each["metadata"].update(label={}), "label"),
    ("trainjob", lambda each: each["spec"].update(podTemplateOverrides=[]), "podTemplateOverrides"),  # of v2.1
    ("trainjob", lambda each: each["spec"]["runtimeRef"].update(name=""), "runtimeRef.name"),
    ("volcano", lambda each: each["spec"]["tasks"][0].update(restarts=1), "restarts"),
    ("volcano", lambda each: each["spec"].update(maxRetry="many"), "many"),
]


@pytest.mark.parametrize("versions", [CURRENT, BEFORE], ids=["current", "before"])
@pytest.mark.parametrize(("kind", "spoil", "named"), SPOILS, ids=range(len(SPOILS)))
def test_the_schemas_are_strict(kind: str, spoil: Callable, named: str, versions: dict[str, str]) -> None:
    wrong = copy.deepcopy(objects(kind)[-1])
    spoil(wrong)
    (found,) = check(wrong, versions, KUBERNETES[-1])
    assert named in found


def test_the_schemas_name_their_releases() -> None:
    for versions in (CURRENT, BEFORE):
        for project, version in versions.items():
            file = ROOT / "tests" / "kubernetes" / "schemas" / f"{project}-{version}.json"
            assert f"tag {version}" in json.loads(file.read_text())["source"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_has_what_a_training_needs(kind: str) -> None:
    made = objects(kind)
    pod = in_template(made[0])
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    assert (spec["serviceAccountName"], spec["restartPolicy"]) == ("trainer", "Never")
    assert container["image"] == "registry.example.org/team/deit_fast:1"
    assert container["resources"]["limits"] == {"cpu": "96000m", "memory": "1000000M", "nvidia.com/gpu": "8"}
    assert container["resources"]["requests"]["nvidia.com/gpu"] == "8"
    assert container["envFrom"] == [{"secretRef": {"name": "s3"}}, {"secretRef": {"name": "hf"}}]
    claims = {each["name"]: each["persistentVolumeClaim"]["claimName"] for each in spec["volumes"]
              if "persistentVolumeClaim" in each}  # fmt: skip
    mounts = {each["mountPath"]: (claims.get(each["name"]), each.get("readOnly")) for each in container["volumeMounts"]}
    expected = {
        "/data": ("imagenet", True),
        "/runs": ("runs", False),
        "/scratch": (None, False),
        "/dev/shm": (None, None),
    }
    assert mounts == expected
    plain = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    assert plain["HF_HOME"] == "/runs/hf"
    assert spec["terminationGracePeriodSeconds"] > int(plain["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    bash, option, script = container["command"]
    assert (bash, option) == ("bash", "-c")
    assert "export NCCL_IB_HCA=mlx5_0:1,mlx5_1:1" in script
    assert "--nnodes 2 --nproc-per-node 8" in script
    assert (
        script.rstrip("}; ")
        .partition("-m deit_fast.cli ")[2]
        .startswith("train deit3_base_1k_192 --data /data/imagenet")
    )
    assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0


NAME = "deit3-base-1k-192"
RANKS = {
    "jobset": ("JOB_COMPLETION_INDEX", f"{NAME}-node-0-0.{NAME}", "jobset.sigs.k8s.io/restart-attempt"),
    "volcano": ("VC_TASK_INDEX", f"{NAME}-node-0.{NAME}", "volcano.sh/job-retry-count"),
}
RANKS["trainjob"] = RANKS["jobset"]


@pytest.mark.parametrize(
    ("kind", "index", "restarts"), [(k, i, r) for k in KINDS for i in (0, 1) for r in ("", "0", "1")]
)
def test_the_nodes_meet_at_the_first_and_elsewhere_after_a_restart(kind: str, index: int, restarts: str) -> None:
    """The script as a pod runs it, with a torchrun that prints its words."""
    variable, first, annotation = RANKS[kind]
    (container,) = in_template(objects(kind)[0])["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    (count,) = (each for each in container["env"] if "valueFrom" in each)
    assert count["valueFrom"]["fieldRef"]["fieldPath"] == f"metadata.annotations['{annotation}']"
    environment[count["name"]] = restarts
    script = container["command"][2].replace(f"$({variable})", str(index))  # which Kubernetes does
    script = script.replace('exec "$python" -P -m deit_fast.runtime.torchrun', "printf '%s\\n'")
    done = subprocess.run(
        ["bash", "-c", script], env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True
    )
    words = done.stdout.split("\n")
    options = dict(zip(words[::2], words[1::2], strict=False))
    assert options["--node-rank"] == str(index), done
    host, port = options["--rdzv-endpoint"].split(":")
    assert host == ("localhost" if index == 0 else first)
    number = subprocess.run(["cksum"], input=f"deit3-base-1k-192-{restarts or 0}".encode(), capture_output=True).stdout
    assert int(port) == 20000 + int(number.split()[0]) % 10000


FINAL = [2, 3, 65, 71, 130]


@pytest.mark.parametrize("retries", [0, 7])
def test_no_retry_for_what_no_retry_mends(retries: int) -> None:
    words = ("--max_retries", str(retries))
    for kind in ("jobset", "trainjob"):
        first = objects(kind, "pretrain", *words)[0]
        job = job_of(first)
        assert (job["backoffLimit"], job["completionMode"], job["podReplacementPolicy"]) == (0, "Indexed", "Failed")
        rules = job["podFailurePolicy"]["rules"]
        assert [(rule["action"], rule["onExitCodes"]["values"]) for rule in rules] == [
            ("FailJob", FINAL),
            ("FailJob", [75]),
        ]
        policy = (first["spec"]["template"]["spec"] if kind == "trainjob" else first["spec"])["failurePolicy"]
        assert policy["maxRestarts"] == retries
        actions = [rule["action"] for rule in policy["rules"]]
        assert actions == ["FailJobSet", *(["RestartJobSetAndIgnoreMaxRestarts"] if retries else [])]
    (job,) = objects("volcano", "pretrain", *words)
    assert job["spec"]["maxRetry"] == retries + 1
    policies = job["spec"]["tasks"][0].get("policies", [])
    ended = [each["exitCode"] for each in policies if each["action"] == "TerminateJob"]
    assert ended == (FINAL if retries else [])
    assert [each["event"] for each in policies if each["action"] == "RestartJob"] == (
        ["PodEvicted", "PodFailed"] if retries else []
    )


@pytest.mark.parametrize("kind", ["jobset", "trainjob"])
def test_what_kueue_reads(kind: str) -> None:
    *others, job = objects(kind, "pretrain", "--topology=preferred:cloud.provider.com/topology-rack")
    labels = {name: value for name, value in job["metadata"]["labels"].items() if "kueue" in name}
    assert labels == {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "urgent"}
    assert not any("kueue" in name for each in others for name in each["metadata"]["labels"])
    annotations = in_template((others or [job])[0])["metadata"]["annotations"]
    assert annotations["kueue.x-k8s.io/podset-preferred-topology"] == "cloud.provider.com/topology-rack"
    assert "suspend" not in job["spec"]  # which Kueue's webhook adds


def test_without_a_queue_nothing_is_kueues() -> None:
    (job,) = yaml.safe_load_all(render("pretrain", ["--as=jobset", "--resume=never", *WHERE, *STAGES["pretrain"]]))
    assert not any("kueue" in name for name in job["metadata"]["labels"])
    assert job["spec"]["failurePolicy"]["maxRestarts"] == 0


def test_an_overlay_is_laid_over_the_pod(tmp_path: Path) -> None:
    overlay = tmp_path / "pod.yaml"
    overlay.write_text(
        "metadata: {annotations: {kueue.x-k8s.io/safe-to-forcefully-delete: 'true'}}\n"
        "spec: {nodeSelector: {gpu: h100}, terminationGracePeriodSeconds: 300, volumes: [{name: x, emptyDir: {}}]}"
    )
    for kind in KINDS:
        first = objects(kind, "pretrain", "--overlay", str(overlay))[0]
        pod = in_template(first)
        assert pod["metadata"]["annotations"]["kueue.x-k8s.io/safe-to-forcefully-delete"] == "true"
        assert pod["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"
        assert (pod["spec"]["nodeSelector"], pod["spec"]["terminationGracePeriodSeconds"]) == ({"gpu": "h100"}, 300)
        assert [each["name"] for each in pod["spec"]["volumes"]] == ["dshm", "mount-0", "mount-1", "mount-2", "x"]
        assert check(first, CURRENT, KUBERNETES[-1]) == []


def test_names_that_every_kind_takes() -> None:
    for name, expected in {"2024-run": "deit-2024-run", "x" * 90: "x" * 30, "Base_192.toml": "base-192"}.items():
        for kind in KINDS:
            job = objects(kind, "pretrain", "--name", name)[-1]
            assert job["metadata"]["name"] == expected
    runner_name = "deit3-base-1k-192-finetune-384-wgb0fsdx1xc42c"  # with what TorchX draws by lot
    assert len(f"{runner_name[:44]}-node-0-1023-abcde") <= 63


DEMO = ["--recipe=demo_pretrain", "--data=d", "--out=o"]
REFUSED = [
    (["--as=jobset", *DEMO[:2]], "the following arguments are required: --out"),
    (DEMO, "the following arguments are required: --as"),
    (["--as=pod"], "invalid choice: 'pod'"),
    (["--as=jobset", "--recipe=absent", *DEMO[1:]], "recipe 'absent'"),
    (["--as=jobset", *DEMO, "optim.lr=x"], "optim.lr"),
    (["--as=jobset", "--topology=rack", *DEMO], "topology='rack': expected"),
    (["--as=volcano", "--topology=required:rack", *DEMO], "expected none"),
    (["--as=jobset", "--queue=q", "--resume=never", *DEMO], "resume: expected"),
    (["--as=trainjob", "--queue=q", "--resume=/x.pt", *DEMO], "resume: expected"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=range(len(REFUSED)))
def test_a_wrong_word_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        render("pretrain", words)
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("deit-fast: ")
    assert message in said.err


def test_the_command() -> None:
    words = ["manifest", "evaluate", "--as", "jobset", "--checkpoint", "/runs/c.pt", "--data", "/data/val"]
    done = subprocess.run([sys.executable, "-m", "deit_fast.cli", *words], cwd=ROOT, capture_output=True, text=True)
    (job,) = yaml.safe_load_all(done.stdout)
    assert (done.returncode, done.stderr, job["kind"], job["metadata"]["namespace"]) == (0, "", "JobSet", "default")


def test_torchx_makes_the_same_objects() -> None:
    """But for the name, which it draws by lot."""
    cfg = {"kind": "trainjob", "namespace": "research", "queue": "gpus", "priority_class": "urgent",
           "service_account": "trainer", "secrets": "s3,hf"}  # fmt: skip
    with get_runner() as runner:
        job = runner.dryrun_component(
            f"{ROOT}/components/deit.py:pretrain", [*WHERE, *STAGES["pretrain"]], "kueue", cfg
        )
    made = list(yaml.safe_load_all(str(job)))
    name = made[-1]["metadata"]["name"]
    assert name.startswith("deit3-base-1k-192-")
    given = {each["name"] for each in in_template(made[0])["spec"]["containers"][0]["env"]}
    assert {"TORCHX_JOB_ID"} <= given
    expected = objects("trainjob")
    for each in (made[0], expected[0]):
        (container,) = in_template(each)["spec"]["containers"]
        container["env"] = [one for one in container["env"] if not one["name"].startswith("TORCHX_")]
    assert json.loads(json.dumps(made).replace(name, "deit3-base-1k-192")) == expected


def test_the_plugin_hides_none_of_torchxs_schedulers() -> None:
    from torchx.schedulers import DEFAULT_SCHEDULER_MODULES

    assert {*DEFAULT_SCHEDULER_MODULES, "kueue"} <= get_scheduler_factories().keys()
    for name in ("slurm", "kubernetes", "kueue"):
        assert get_scheduler_factories()[name]("session").backend == name


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_is_a_file_for_each_stage_in_order(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--size=base", "--data=/data/imagenet", "--out=/runs/base", f"--manifests={tmp_path}/m", *WHERE]
    assert main([*words, "--cfg", f"kind={kind},namespace=research,queue=gpus"]) == 0
    commands = capsys.readouterr().out.splitlines()
    files = sorted((tmp_path / "m").iterdir())
    stages = build_stages("base", "/data/imagenet", "/runs/base")
    assert [file.stem.partition("-")[2] for file in files] == [stage.name for stage in stages]
    assert len(files) == 2 * len(PIPELINES["base"])
    for file, command in zip(files, commands, strict=True):
        made = list(yaml.safe_load_all(file.read_text()))
        assert all(check(each, CURRENT, KUBERNETES[-1]) == [] for each in made)
        assert command.startswith(f"kubectl apply -f {file} && kubectl wait -n research --for=")
        assert command.endswith(f"/{made[-1]['metadata']['name']}")
    assert main([*words, "--cfg", f"kind={kind},namespace=research,queue=gpus"]) == 0  # over those of before


def test_a_pipelines_files_are_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size=base", "--data=/data/imagenet", "--out=/runs/base"]
    (tmp_path / "file").touch()
    assert main([*words, f"--manifests={tmp_path}/file/m"]) == 2
    assert "--manifests" in capsys.readouterr().err
    for cfg, message in (("kind=pod", "invalid choice: 'pod'"), ("quota=3", "unrecognized arguments: --quota=3")):
        with pytest.raises(SystemExit):
            main([*words, f"--manifests={tmp_path}/m", "--cfg", cfg])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("versions", [CURRENT, BEFORE], ids=["current", "before"])
def test_what_the_page_tells_an_administrator_is_valid(versions: dict[str, str]) -> None:
    import kubernetes_validate

    blocks = re.findall(r"```yaml[^\n]*\n(.*?)```", (ROOT / "docs" / "clusters.md").read_text(), re.S)
    written = [each for block in blocks for each in yaml.safe_load_all(block) if "kind" in each]
    kinds = ["ResourceFlavor", "ClusterQueue", "LocalQueue", "WorkloadPriorityClass"]
    assert [each["kind"] for each in written] == [*2 * ["PersistentVolumeClaim"], *kinds]
    for claim in written[:2]:
        kubernetes_validate.validate(claim, KUBERNETES[-1], strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate({**claim, "specs": {}}, KUBERNETES[-1], strict=True)
    for each in written[2:]:
        assert check(each, versions, KUBERNETES[-1]) == []
        assert check({**each, "specs": {}}, versions, KUBERNETES[-1])
