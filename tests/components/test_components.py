"""The TorchX components: what they submit, what they refuse, and what reaches the trainer's command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from deit_fast.components import deit
from torchx import specs
from torchx.runner import get_runner
from torchx.runner.config import apply
from torchx.specs.file_linter import validate

from tests.conftest import ROOT

FILE = Path(deit.__file__)
NAMES = ("pretrain", "finetune", "evaluate")
TORCHX = [sys.executable, "-m", "torchx.cli.main", "run", "-s", "local_cwd"]
PRETRAIN = ["--recipe", "deit3_small_1k_224", "--data", "images", "--out", "run"]
NASTY = "a b 'c' \"d\" $HOME $$ ${app_id} $app_id $(HOME) `id` \\ ; * é\n!"


def pretrain(*overrides: str, **where: object) -> specs.Role:
    fixed = {"recipe": "deit3_small_1k_224", "data": "images", "out": "run"}
    return deit.pretrain(*overrides, **{**fixed, **where}).roles[0]  # type: ignore[arg-type]


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], tuple[list[str], str]]:
    """Runs a role's command with a Python that writes down its arguments and threads."""
    (tmp_path / "bin").mkdir()
    recorder = (
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump([sys.argv[1:], os.environ['OMP_NUM_THREADS'], os.environ.get('LIST')], "
        f"open({str(tmp_path / 'seen.json')!r}, 'w'))\n"
    )
    (tmp_path / "bin" / "python").write_text(recorder)
    (tmp_path / "bin" / "srun").write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    for file in (tmp_path / "bin").iterdir():
        file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def launch(command: list[str]) -> tuple[list[str], str]:
        environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
        subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True)
        words, threads, listed = json.loads((tmp_path / "seen.json").read_text())
        assert listed == "0,1"
        return words, threads

    return launch


@pytest.mark.parametrize("scheduler", ["local_cwd", "slurm"])
def test_every_word_reaches_the_trainer_as_typed(
    scheduler: str, tmp_path: Path, launched: Callable[[list[str]], tuple[list[str], str]]
) -> None:
    words = ["--recipe", "deit3_small_1k_224", "--init", NASTY, "--data", f"s3://{NASTY}", "--out", f"/runs/{NASTY}"]
    words += ["--val", "v", "--env", "A=1,LIST=0,1", "--cpu", "2", "-j", "1x2", "run.seed=3", f"data.mean={'0,0,0'}"]
    with get_runner() as runner:
        cfg = {"log_dir": str(tmp_path)} if scheduler == "local_cwd" else {}
        info = runner.dryrun_component(f"{FILE}:finetune", words, scheduler, cfg)
        if scheduler == "slurm":
            command = ["bash", "-c", info.request.materialize()]
            assert "A=1" in command[2]
            assert "LIST=0" not in command[2].split("bash -c")[0]  # where srun would cut it at the comma
        else:
            command = info.request.role_params["train"][0].args
    seen, threads = launched(command)
    assert seen[:3] == ["-P", "-m", "deit_fast.runtime.torchrun"]
    start = seen.index("-m", 3)
    assert seen[start:] == [
        *("-m", "deit_fast.cli", "train", "deit3_small_1k_224", "--data", f"s3://{NASTY}", "--out", f"/runs/{NASTY}"),
        *("--val", "v", "--init", NASTY, "run.seed=3", "data.mean=0,0,0"),
    ]
    assert "--rdzv-endpoint localhost:0" in " ".join(seen[:start])
    assert threads == "1"  # two cores at most, two processes
    assert seen[seen.index("--rdzv-id") + 1] not in ("", "${app_id}")


def test_kubernetes_expands_nothing_of_ours() -> None:
    script = pretrain(data="$(HOME) $$(HOME)").args[1]
    assert "$(HOME)" not in script


def test_layout_and_resources() -> None:
    role = pretrain(j="2x8", gpu=8, cpu=96, memMB=1000, max_retries=7, env="B=1", mounts="type=volume,src=p,dst=/d")
    assert (role.num_replicas, role.max_retries, role.resource.gpu, role.resource.cpu) == (2, 7, 8, 96)
    assert role.env["B"] == "1"
    assert role.mounts[0].dst_path == "/d"
    script = role.args[1]
    assert "--nnodes 2 --nproc-per-node 8" in script
    assert "--max-restarts 0" in script
    assert '"$${${rank0_env}:=localhost}:' in script
    assert ":29511" in pretrain(j="2x8", rdzv_port=29511).args[1]
    assert "--nnodes 1 --nproc-per-node 2" in pretrain(j="2").args[1]
    evaluation = deit.evaluate("model.image_size=384", checkpoint="c.pt", data="d", out="s.json").roles[0]
    assert "deit_fast.cli evaluate c.pt --data d --json s.json model.image_size=384; }" in evaluation.args[1]
    evaluation = deit.evaluate("optim.lr=1", checkpoint="c", data="d", flip="true", real="r", report="f").roles[0]
    assert "deit_fast.cli evaluate c --data d --real r --report f --flip optim.lr=1; }" in evaluation.args[1]
    assert deit.pretrain(recipe="demo_pretrain", data="d", out="o").name == "demo-pretrain"


@pytest.mark.parametrize("name", ["h200", "h100", "a100", "cpu_small"])
def test_named_resources_are_registered_and_can_be_changed(name: str) -> None:
    resource = pretrain(h=name).resource
    assert resource == specs.named_resources[name]
    assert resource.gpu == (0 if name == "cpu_small" else 8)
    assert resource.cpu >= resource.gpu
    changed = pretrain(h=name, cpu=3, memMB=500).resource
    assert (changed.cpu, changed.gpu, changed.memMB) == (3, resource.gpu, 500)
    assert specs.named_resources[name] == resource
    assert pretrain(h="h100", gpu=2).resource.gpu == 2


def test_a_file_of_labels_goes_along() -> None:
    evaluation = deit.evaluate(checkpoint="c", data="d", labels="l.csv", classes="all").roles[0]
    assert " --classes all" in evaluation.args[1]
    assert " --labels l.csv" in pretrain(labels="l.csv").args[1]
    assert " --labels l.csv" in evaluation.args[1]


def test_a_teacher_goes_along_where_it_is_needed() -> None:
    words = ["model.name=deit_tiny_distilled_patch16", "distill.kind=hard"]
    assert " --teacher t.pth " in pretrain(*words, teacher="t.pth").args[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher": "t.pth"}, "--teacher t.pth: expected none with distill.kind='none'"),
        (
            {"overrides": ["model.name=deit_tiny_distilled_patch16", "distill.kind=soft"]},
            "distill.kind='soft': expected --teacher with weights of distill.teacher='regnety_160'",
        ),
        ({"recipe": "deit3_smal_1k_224"}, "did you mean 'deit3_small_1k_224'"),
        ({"overrides": ["optim.lx=1"]}, "optim.lx: no such key"),
        ({"overrides": ["optim.name=adam"]}, "optim.name='adam'"),
        ({"overrides": ["--lr"]}, "expected section.key=value"),
        ({"j": "0x2"}, "j='0x2': expected NODESxPROCESSES"),
        ({"j": "1x3"}, "run.global_batch=2048: expected a multiple of 3 processes"),
        ({"j": "1x8", "gpu": 4}, "j='1x8': expected at most 4 processes per node"),
        ({"overrides": ["run.global_batch=6"], "j": "2"}, "expected an even batch"),
        ({"h": "no.such.host"}, "h='no.such.host': expected a named resource"),
    ],
)
def test_bad_values_are_one_line_and_status_2(
    arguments: dict[str, object], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = arguments.pop("overrides", [])
    with pytest.raises(SystemExit) as stop:
        pretrain(*overrides, **arguments)  # type: ignore[misc]
    assert stop.value.code == 2
    error = capfd.readouterr().err
    assert error.startswith("deit-fast: ")
    assert message in error
    assert error.count("\n") == 1


def test_the_other_components_check_too(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        deit.finetune(recipe="demo_finetune", init="", data="d", out="o")
    with pytest.raises(SystemExit, match="2"):
        deit.evaluate("model.size=3", checkpoint="c", data="d")
    assert capfd.readouterr().err.count("\n") == 2


@pytest.mark.parametrize("name", NAMES)
def test_torchx_accepts_the_component(name: str) -> None:
    assert validate(str(FILE), name) == []


def test_torchx_finds_components_and_nothing_else() -> None:
    code = (
        "import sys\nfrom torchx.specs import finder\nbefore = dict(vars(finder))\n"
        "found = [name for name in finder.get_components() if name.startswith('deit.')]\n"
        f"finder.get_component({f'{FILE}:pretrain'!r})\n"
        "lost = [name for name, value in before.items() if name[:2] != '__' and name != '_components'"
        " and vars(finder)[name] is not value]\n"
        "import deit_fast.pipelines.deit3\n"
        "heavy = [name for name in ('torch', 'nvidia.dali', 'timm') if name in sys.modules]\n"
        "print(found, lost, heavy)\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == f"{sorted(f'deit.{name}' for name in NAMES)} [] []"


@pytest.mark.parametrize("address", [f"{FILE}:pretrain", "deit.pretrain"])
def test_torchx_run_refuses_in_one_line(address: str, tmp_path: Path) -> None:
    command = [*TORCHX, address, *PRETRAIN, "-j", "1x2", "optim.lr=fast"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == ["deit-fast: optim.lr='fast': expected number"]


def test_two_runs_on_one_host_stay_apart(tmp_path: Path) -> None:
    """Real torchrun, two nodes and one: each finds its own processes, with cores to compute on."""
    (tmp_path / "deit_fast").mkdir()
    (tmp_path / "deit_fast" / "__init__.py").touch()
    (tmp_path / "deit_fast" / "cli.py").write_text(
        "import os, sys\nopen(sys.argv[-1].split('=')[1] + '.' + os.environ['RANK'], 'w').write("
        "' '.join(os.environ[k] for k in ('WORLD_SIZE', 'MASTER_PORT', 'OMP_NUM_THREADS')))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    runs = [
        subprocess.Popen(
            [*TORCHX, "deit.pretrain", *PRETRAIN, "-j", layout, f"run.seed={seed}"], cwd=tmp_path, env=environment
        )
        for layout, seed in (("2x1", 1), ("1x2", 2))
    ]
    assert [run.wait(timeout=200) for run in runs] == [0, 0]
    seen = {file.name: file.read_text().split() for file in tmp_path.glob("[12].*")}
    assert sorted(seen) == ["1.0", "1.1", "2.0", "2.1"]
    assert {world for world, _, _ in seen.values()} == {"2"}
    assert seen["1.0"][1] == seen["1.1"][1] != seen["2.0"][1] == seen["2.1"][1]
    assert seen["2.0"][2] == str(max(1, len(os.sched_getaffinity(0)) // 2))


@pytest.mark.parametrize("scheduler", ["local_cwd", "slurm"])
def test_torchxconfig_holds_real_options(scheduler: str, caplog: pytest.LogCaptureFixture) -> None:
    cfg: dict[str, object] = {}
    apply(scheduler, cfg, dirs=[str(ROOT)])  # type: ignore[arg-type]
    with get_runner() as runner:
        assert set(cfg) <= {name for name, _ in runner.scheduler_run_opts(scheduler)}
    assert cfg
    assert "is not a runopt" not in caplog.text
