"""The published pipelines: their stages, their command line, and a whole run of one with stand-in jobs."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from deit_fast.pipelines import deit3
from deit_fast.pipelines.deit3 import PIPELINES, build_stages, format_report, main, name_trainings
from deit_fast.pipelines.state import PipelineError, is_written, read_result

from deit_fast.recipe.table import RECIPES
from deit_fast.runtime import patience
from deit_fast.runtime.errors import StorageError
from tests.loopback import place, serve_loopback

# Stands in for components/deit.py: jobs that write what the trainer and the evaluation leave behind.
TRAINING = '''
def NAME(
    *words: str, recipe: str, data: str, out: str, val: str = "", init: str = "", name: str = "", j: str = "1x1"
) -> specs.AppDef:
    """Trains."""
    text = '{"image_size": 32, "top1": 12.345, "images_per_second": 250.0, "minutes": 1.5, "checkpoint": "last.pt"}'
    need = f"test -e {init} && " if init else ""
    script = f"{need}mkdir -p {out}/checkpoints && touch {out}/checkpoints/last.pt && echo '{text}' > {out}/result.json"
    return specs.AppDef(name="t", roles=[specs.Role(name="train", image="", entrypoint="/bin/sh", args=["-c", script])])
'''
EVALUATION = '''
def evaluate(*words: str, checkpoint: str, data: str, out: str, name: str = "", j: str = "1x1") -> specs.AppDef:
    """Evaluates."""
    script = f"test -e {checkpoint} && echo '{{\\"top1\\": 50, \\"top5\\": 75.5}}' > {out}"
    return specs.AppDef(name="e", roles=[specs.Role(name="main", image="", entrypoint="/bin/sh", args=["-c", script])])
'''


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


def demo(*words: str) -> list[str]:
    return ["--size", "demo", "--data", "digits", "--out", "out", *words]


def test_each_training_starts_from_the_one_before() -> None:
    for size, trainings in PIPELINES.items():
        stages = {stage.name: stage for stage in build_stages(size, "d", "/o")}
        assert set(trainings.values()) <= set(RECIPES)
        assert len(stages) == 2 * len(trainings)
        before = ""
        for name in trainings:
            words = stages[name].arguments
            assert ("--init" in words) == bool(before)
            if before:
                assert words[words.index("--init") + 1] == f"/o/{before}/checkpoints/last.pt"
                assert RECIPES[trainings[name]].model.name == RECIPES[trainings[before]].model.name
            assert stages[name].needs == ((before,) if before else ())
            assert stages[f"evaluate_{name}"].needs == (name,)
            before = name


def test_pretraining_on_other_images_is_evaluated_on_them() -> None:
    words = {s.name: s.arguments for s in build_stages("base_21k", "d", "/o", "v", pretrain_data="w21")}
    assert words["pretrain"][:6] == ("--recipe", "deit3_base_21k_224", "--data", "w21", "--out", "/o/pretrain")
    assert "w21" in words["evaluate_pretrain"]
    finetuning = words["finetune_1k"]
    assert finetuning[finetuning.index("--data") + 1] == "d"
    assert finetuning[finetuning.index("--val") + 1] == "v"
    assert "v" in words["evaluate_finetune_1k"]
    assert "w21" not in finetuning + words["evaluate_finetune_1k"]


def test_labels_go_with_the_validation_images() -> None:
    words = {s.name: s.arguments for s in build_stages("base_21k", "d", "/o", "v", pretrain_data="w", labels="l.csv")}
    labelled = [name for name, given in words.items() if "--labels" in given]
    assert labelled == ["finetune_1k", "evaluate_finetune_1k"]
    assert all(words[name][words[name].index("--labels") + 1] == "l.csv" for name in labelled)


def test_overrides_go_to_every_training_or_to_one_stage() -> None:
    words = ["schedule.epochs=9", "pretrain:optim.lr=1e-3", "evaluate_finetune:data.eval_crop_ratio=0.875"]
    stages = {stage.name: stage for stage in build_stages("demo", "d", "/o", overrides=words)}
    assert stages["pretrain"].arguments[-2:] == ("schedule.epochs=9", "optim.lr=1e-3")
    assert stages["finetune"].arguments[-2:] == ("/o/finetune", "schedule.epochs=9")
    assert stages["evaluate_pretrain"].arguments[-1] == "/o/pretrain/evaluation.json"
    assert stages["evaluate_finetune"].arguments[-1] == "data.eval_crop_ratio=0.875"
    with pytest.raises(PipelineError, match="no stage 'finetune_384'; expected one of pretrain, evaluate_pretrain"):
        build_stages("demo", "d", "/o", overrides=["finetune_384:optim.lr=1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lx=1"], "optim.lx: no such key"),
        (["finetune:optim.lr=-1"], "optim.lr="),
        (["evaluate_pretrain:optim.lx=1"], "optim.lx: no such key"),
        (["nope:optim.lr=1"], "no stage 'nope'"),
        (["-j", "1x7"], "expected a multiple of 7 processes"),
        (["-j", "x"], "j='x'"),
        (["--cpu", "many"], "argument --cpu: invalid int value"),
        (["--cfg", "speed=9"], "speed"),
        (["--cfg", "prepend_cwd=yes"], "cfg prepend_cwd='yes': expected true or false"),
        (["--cfg", "log_dir"], "cfg='log_dir': expected NAME=value"),
        (["--env", "A"], "env='A': expected NAME=value"),
        (["--mounts", "x"], "mounts='x'"),
        (["--cpu=-1"], "cpu=-1: expected 0 or more"),
        (["--out", ""], "--out '': expected a folder"),
        (["--data="], "--data '': expected an image folder or shards"),
        (["--max-parallel", "0"], "--max-parallel=0"),
        (["--pretrain-data", "w21"], "--pretrain-data='w21': expected none for demo"),
        (["--size", "base_21k"], "--pretrain-data='': expected the images of ImageNet-21k for base_21k"),
        (["--scheduler", "moon"], "argument --scheduler: invalid choice"),
    ],
)
def test_bad_values_are_one_line_and_status_2(
    words: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(demo(*words))
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert error.startswith("deit-fast: ")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_every_job_and_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(demo("--dry-run=full", "-j", "1x2", "run.seed=5", "--gpu", "2")) == 0
    printed = capfd.readouterr().out
    assert [line.split(",")[0] for line in printed.splitlines() if line.startswith("===")] == [
        f"=== {name}" for name in ("pretrain", "evaluate_pretrain", "finetune", "evaluate_finetune")
    ]
    assert printed.count("'entrypoint': 'bash'") == 4
    assert "run.seed=5" in printed
    assert list(tmp_path.iterdir()) == []


def test_slurm_jobs_can_be_dry_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [
        "--size",
        "base",
        "--data",
        "d",
        "--out",
        "o",
        "--scheduler",
        "slurm",
        "--cfg",
        "time=60",
        "--dry-run=full",
    ]
    assert main([*words, "-j", "2x8", "--gpu", "8"]) == 0
    printed = capfd.readouterr().out
    assert printed.count("#SBATCH hetjob") == 6
    assert "--time=60" in printed
    assert list(tmp_path.iterdir()) == []


def test_every_option_arrives_as_it_was_typed(capfd: pytest.CaptureFixture[str]) -> None:
    words = [
        "--cfg",
        "comment==a=b,partition=c",
        "--env",
        "NCCL_IB_HCA==mlx5_0:1",
        "--image=-x",
        "--scheduler",
        "slurm",
    ]
    assert main(demo("--dry-run=full", *words)) == 0
    printed = capfd.readouterr().out
    assert printed.count("--comment==a=b ") >= 4
    assert printed.count("--partition=c") == 4
    assert printed.count("'NCCL_IB_HCA': '=mlx5_0:1'") == 4
    assert printed.count("'image': '-x'") == 4


def test_kubernetes_jobs_can_be_dry_run_without_a_cluster(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    words = ["--scheduler", "kubernetes", "--cfg", "queue=q", "--dry-run=full", "--max_retries", "3"]
    assert main(demo(*words)) == 0
    assert capfd.readouterr().out.count("queue: q") == 4


def test_torchxconfig_gives_component_defaults(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text("[component:deit.finetune]\nmax_retries = 17\n")
    monkeypatch.setenv("TORCHXCONFIG", str(config))
    assert main(demo("--dry-run=full")) == 0
    assert capfd.readouterr().out.count("'max_retries': 17") == 1


def test_a_whole_run_ends_in_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    trainings = [TRAINING.replace("NAME", name) for name in ("pretrain", "finetune")]
    (tmp_path / "jobs.py").write_text("\n".join(["from torchx import specs", *trainings, EVALUATION]))
    monkeypatch.setattr("deit_fast.pipelines.trainings.COMPONENTS", tmp_path / "jobs.py")
    assert main(demo("--max-parallel", "2")) == 0
    printed = capfd.readouterr().out
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| pretrain          | 32         | 12.35 | -     | 250.0    | 1.5     | last.pt    |" in report
    assert "| evaluate_finetune | -          | 50.00 | 75.50 |" in report
    assert report.split("\n\n")[1].strip() in printed
    assert "TensorBoard  tensorboard --logdir out\n" in printed  # as seen from this folder
    assert "plots        out/*/curves.png\n" in printed
    assert main(demo()) == 0
    assert capfd.readouterr().out.count("done before") == 4
    assert main(demo("run.seed=1")) == 2
    assert "stage 'pretrain' was run with fewer words, not run.seed=1" in capfd.readouterr().err


def test_unreadable_results_are_dashes() -> None:
    stages = build_stages("demo", "d", "/nowhere")
    rows = format_report(stages, [read_result(stage.result) for stage in stages]).splitlines()
    assert len(rows) == 6
    assert json.dumps(rows[2].split("|")[2:4]) == json.dumps([" -          ", " -     "])


def test_both_module_names_run() -> None:
    for name, folder in (("pipelines.deit3", Path(deit3.__file__).parent.parent), ("deit_fast.pipelines.deit3", None)):
        command = [sys.executable, "-m", name, "--help"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        assert "evaluate_STAGE" in done.stdout


@pytest.mark.parametrize("data", ["images/train", "images/train/", "shards/train-{0000..0009}.tar"])
def test_training_images_alone_are_not_evaluated_on(
    data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--size", "demo", "--data", data, "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    assert "names training images alone; expected --val" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_whole_run_in_an_object_store(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    trainings = [TRAINING.replace("NAME", name) for name in ("pretrain", "finetune")]
    jobs = "\n".join([*trainings, EVALUATION])
    for name in ("init", "out", "checkpoint"):  # whose folder the stand-ins' shell has
        jobs = jobs.replace(f"{{{name}}}", f"{{{name}.removeprefix('file://')}}")
    (tmp_path / "jobs.py").write_text(f"from torchx import specs\n{jobs}")
    monkeypatch.setattr("deit_fast.pipelines.trainings.COMPONENTS", tmp_path / "jobs.py")
    out = f"file://{tmp_path}/store/runs"
    words = ["--size", "demo", "--data", "s3://bucket/digits", "--out", f"{out}/"]
    assert main(words) == 0
    assert (tmp_path / "store" / "runs" / "finetune" / "result.json").exists()
    state = cache / "file" / str(tmp_path).strip("/") / "store" / "runs"
    assert f"run folder   {out}\nreport       {state}/report.md" in capfd.readouterr().out
    assert "| evaluate_finetune | -          | 50.00 | 75.50 |" in (state / "report.md").read_text()
    assert {path.name for path in state.iterdir()} == {"logs", "pipeline.json", "pipeline.lock", "report.md"}
    assert main(words) == 0
    assert capfd.readouterr().out.count("done before") == 4
    (tmp_path / "store" / "runs" / "finetune" / "evaluation.json").unlink()  # removed for it to run again
    assert main(words) == 0
    assert capfd.readouterr().out.count("done before") == 3


@pytest.mark.parametrize("scheme", ["s3", "gs", "file"])
def test_results_in_stores_are_seen(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_: float) -> None: ...

    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=at_once))  # half a minute of pauses, inside ours
    with serve_loopback(monkeypatch, tmp_path) as store:
        uri, folder = place(store, scheme)
        result = f"{uri}/result.json"
        assert (is_written(result), read_result(result)) == (False, {})
        before = time.time() - 2  # the store tells whole seconds
        (folder / "result.json").write_text('{"top1": 50.0}')
        assert (is_written(result), is_written(result, before)) == (True, True)
        assert not is_written(result, before + 60)
        assert read_result(result) == {"top1": 50.0}
        store.unavailable = 1.0
        if scheme != "file":
            with pytest.raises(StorageError):
                is_written(result)
            assert read_result(result) == {}


@pytest.mark.parametrize(
    ("option", "uri", "says"),
    [
        ("--state", "s3://bucket/runs", "--state s3://bucket/runs: expected a folder on this machine"),
        ("--out", "https://host/runs", "https://host/runs: expected a path, s3://, gs:// or file://"),
        ("--out", "hf://datasets/me/runs", "hf://datasets/me/runs: expected a path, s3://, gs:// or file://"),
    ],
)
def test_folders_that_cannot_be_written(option: str, uri: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "demo", "--data", "digits", "--out", "runs", option, uri]) == 2
    assert says in capsys.readouterr().err


def test_recipes_in_place_of_a_size() -> None:
    size, trainings = name_trainings(None, "finetune_small,demo_finetune", "w.pth")
    stages = {s.name: s for s in build_stages(size, "d", "/o", "0.2", trainings=trainings, init="w.pth")}
    assert list(stages) == ["finetune_small", "evaluate_finetune_small", "demo_finetune", "evaluate_demo_finetune"]
    first, second = (" ".join(stages[name].arguments) for name in trainings)
    assert first == "--recipe finetune_small --init w.pth --data d --val 0.2 --out /o/finetune_small"
    assert "--init /o/finetune_small/checkpoints/last.pt --data d --val 0.2" in second
    scored = "--checkpoint /o/finetune_small/checkpoints/last.pt --data d "  # and not --data 0.2
    assert " ".join(stages["evaluate_finetune_small"].arguments).startswith(scored)
    assert [stages[name].component.rpartition(":")[2] for name in trainings] == ["finetune", "finetune"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--size= --recipe=: expected one of the two"),
        (["--size", "demo", "--recipe", "probe"], "--size=demo --recipe=probe: expected one of the two"),
        (["--size", "demo", "--init", "w.pth"], "--init w.pth: expected with --recipe"),
        (["--recipe", "probe"], "--recipe probe: expected --init with the weights that it finetunes, or none"),
        (["--recipe", "scratch_small,scratch_small"], "expected each recipe once"),
        (["--recipe", "scratch_smal"], "did you mean 'scratch_small'?"),
        (["--recipe", "scratch_small", "--val", "2"], "--val 2: expected a share from 0 to below 1"),
    ],
)
def test_recipes_that_cannot_be_a_pipeline(
    words: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--data", "d", "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
