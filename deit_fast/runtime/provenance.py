"""How the processes of a run were started: command, machine, versions, commit. starts.jsonl has a line per start."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from deit_fast.runtime.files import json_text
from deit_fast.runtime.hardware import describe_cpu

STARTS = "starts.jsonl"
_PACKAGES = ("deit_fast", "torch", "torchvision", "timm", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "numpy")
_JOBS = ("SLURM_JOB_ID", "TORCHX_JOB_ID", "TORCHELASTIC_RUN_ID")


def note_start(folder: Path, processes: int, device: torch.device, step: int, places: dict[str, Any]) -> None:
    """Adds a line about this start to the run's folder. Raises OSError.

    places: what the run was given, by name (data, val, labels, teacher, init): paths from the root, or URIs. step: the
    step from which the run continues.
    """
    with open(folder / STARTS, "a", encoding="utf-8") as file:
        file.write(json_text({**describe_start(processes, device), "step": step, **places}, None) + "\n")


def describe_start(processes: int, device: torch.device) -> dict[str, Any]:
    """Time (UTC), command, machine, versions, and the commit of the source if it is a checkout."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "host": platform.node(),
        "processes": processes,
        "gpu": gpu,
        "cpu": describe_cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "cuda": torch.version.cuda if gpu is not None else None,
        "commit": describe_commit(),
        **{name: os.environ[name] for name in _JOBS if os.environ.get(name)},
    }


def describe_commit() -> str | None:
    """The source checkout's commit, with "+changes" if files differ; None if the source is no checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
