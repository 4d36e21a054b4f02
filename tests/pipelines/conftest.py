"""Fixtures for tests of the DAG: components that run one line of shell, a stand-in for Slurm, files of a run."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from deit_fast.pipelines import dag
from deit_fast.pipelines.dag import run_stages
from deit_fast.pipelines.deit3 import main
from deit_fast.pipelines.stages import Stage
from torchx.runner import get_runner

COMPONENTS = '''
import sys

from torchx import specs


def sh(*words: str, script: str, refuse: str = "") -> specs.AppDef:
    """Runs a script."""
    if refuse:
        print(refuse, file=sys.stderr)
        raise SystemExit(2)
    args = ["-c", script.replace("$", "$$"), *words]
    return specs.AppDef(name="sh", roles=[specs.Role(name="main", image="", entrypoint="/bin/sh", args=args)])
'''


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Restores pytest's signal handlers after LocalScheduler has installed its own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def component(tmp_path: Path) -> str:
    (tmp_path / "components.py").write_text(COMPONENTS)
    return f"{tmp_path / 'components.py'}:sh"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def run(stages: list[Stage], folder: Path, max_parallel: int | None = None) -> int:
    with get_runner() as runner:
        return run_stages(stages, folder, runner, "local_cwd", {}, max_parallel, poll_seconds=0.02)


def states(folder: Path) -> dict[str, str]:
    return {n: record["state"] for n, record in json.loads((folder / "pipeline.json").read_text())["stages"].items()}


def wait_for(path: Path, text: str = "", seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end, f"{path} never held {text!r}"
        time.sleep(0.02)


def shell(component: str, name: str, script: str, *needs: str, result: str = "") -> Stage:
    return Stage(name, component, ("--script", script), needs, output=result, result=result)


# One JSON file for each job: its state, and sbatch's arguments.
COMMANDS = """
import json, os, sys, time
from pathlib import Path
folder, name, words = Path(sys.argv[0]).parent.parent / "jobs", Path(sys.argv[0]).name, sys.argv[1:]
jobs = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
if name == "sbatch":
    if (folder / "refuse").exists():
        sys.exit("sbatch: error: invalid account")
    script = Path(words[-1]).read_text()
    (folder / "begun").touch()
    while (folder / "slow").exists():  # and whoever started it may be gone
        time.sleep(0.02)
    jobs = list(folder.glob("*.json"))
    job = {"state": "PENDING", "words": words[:-1], "train": "deit_fast.cli train" in script}
    (folder / f"{len(jobs) + 1}.json").write_text(json.dumps(job))
    print(len(jobs) + 1)
    if (folder / "die").exists():
        os.kill(os.getppid(), 9)
elif name == "squeue" and "--me" in words:
    for key, job in jobs.items():
        comment = [word for word in job["words"] if word.startswith("--comment=")][-1].partition("=")[2]
        if job["state"] in ("PENDING", "RUNNING"):
            print(f"{key}+0 {comment}")
elif name == "sacct" and "-j" in words:  # TorchX's, before it reads a log
    key = words[words.index("-j") + 1]
    print(f"JobID|JobName|State\\n{key}|evaluate-0|{jobs[key]['state']}")
elif name in ("squeue", "sacct"):
    key = words[words.index("--jobs") + 1]
    if name == "squeue" and not {"PENDING", "RUNNING"} & set(jobs[key]["state"].split()):
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    print(jobs[key]["state"])
elif name == "scancel":
    (folder / f"{words[-1]}.json").write_text(json.dumps({**jobs[words[-1]], "state": "CANCELLED by 0"}))
"""


class Slurm:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "jobs"
        self.folder.mkdir()

    def words(self, job: int) -> list[str]:
        return self._read(job)["words"]

    def set(self, job: int, state: str) -> None:
        (self.folder / f"{job}.json").write_text(json.dumps({**self._read(job), "state": state}))

    def state(self, job: int) -> str:
        return self._read(job)["state"]

    def count(self) -> int:
        return len(list(self.folder.glob("*.json")))

    def _read(self, job: int) -> dict:
        return json.loads((self.folder / f"{job}.json").read_text())


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(f"#!{sys.executable} -S\n{COMMANDS}")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    for name in ("squeue", "sacct", "scancel", "sinfo"):
        (tmp_path / "bin" / name).symlink_to("sbatch")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SBATCH_SIGNAL", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dag, "time", SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None}))
    return Slurm(tmp_path)


def demo(*words: str) -> int:
    return main(["--size", "demo", "--data", "digits", "--out", "out", "--scheduler", "slurm", *words])
