"""One module knows each scheduler: nothing else asks for one by its name."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from deit_fast.pipelines.schedulers.local_cwd import find_processes
from torchx.schedulers import get_scheduler_factories

from tests.conftest import ROOT

NAMES = {*get_scheduler_factories(), "local"}


@pytest.mark.parametrize("package", ["pipelines.schedulers", "deit_fast.pipelines.schedulers"])
def test_a_module_serves_the_scheduler_of_its_name_and_its_handles(package: str) -> None:
    module = importlib.import_module(package)
    facts = {
        name: (scheduler.local, bool(scheduler.queue), scheduler.missing and scheduler.missing.name)
        for name in get_scheduler_factories()
        for scheduler in [module.find_scheduler(name)]
    }
    plain = (False, False, "UNKNOWN")
    assert facts == dict.fromkeys(facts, plain) | {
        "local_cwd": (True, False, None),
        "local_docker": (True, False, None),
        "slurm": (False, True, "UNKNOWN"),
        "kubernetes": (False, False, "CANCELLED"),
        "kueue": (False, False, "CANCELLED"),
    }
    assert module.find_scheduler("slurm://torchx/12") is module.find_scheduler("slurm")


def asks_by_name(tree: ast.AST) -> list[int]:
    """Lines that compare something with a scheduler's name, or with the beginning of a name or a handle."""
    found = []
    for node in ast.walk(tree):
        asks = isinstance(node, ast.Compare | ast.MatchValue) or (
            isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("startswith", "removeprefix", "partition")
        )
        words = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant)) if asks else ()
        if any(isinstance(word, str) and word.rstrip("_").partition(":")[0] in NAMES for word in words):
            found.append(node.lineno)
    return found


def test_nothing_asks_for_a_scheduler_by_its_name() -> None:
    asked = 'a == "slurm"\nb.startswith("local")\nc.startswith("kubernetes://")\nd in ("x", "slurm")\ne == "slow"'
    assert sorted(asks_by_name(ast.parse(asked))) == [1, 2, 3, 4]
    files = [path for folder in ("pipelines", "components") for path in sorted((ROOT / folder).rglob("*.py"))]
    others = [path for path in files if path.parent.name != "schedulers"]
    assert len(others) > 5
    assert {path: asks_by_name(ast.parse(path.read_text())) for path in others} == {path: [] for path in others}


def test_processes_are_found_by_their_job(tmp_path: Path) -> None:
    """Also one whose environment is no text, and not one that is over but not yet waited for."""
    handle = "local_cwd://torchx/mine"
    environment = {**os.environb, b"TORCHX_JOB_ID": handle.encode(), b"BYTES": b"\xff=\n"}
    command = [sys.executable, "-c", "input()"]
    both = [
        subprocess.Popen(command, env=each, stdin=subprocess.PIPE)
        for each in (environment, {**environment, b"TORCHX_JOB_ID": handle.encode() + b"2"})
    ]
    assert find_processes(handle) == [both[0].pid]
    for process in both:
        assert process.stdin is not None
        process.stdin.close()
    os.waitid(os.P_PID, both[0].pid, os.WEXITED | os.WNOWAIT)
    assert find_processes(handle) == []
    for process in both:
        process.wait()
