"""What the tests of the DAG share: components that run one line of shell, and what a run leaves."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deit_fast.pipelines.dag import run_stages
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
    """LocalScheduler installs handlers; pytest gets its own back."""
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
