"""The machine on which a figure was measured: CPU, GPU, their state, and versions of relevant packages."""

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from deit_fast.runtime.hardware import cpu_threads, describe_cpu

_PACKAGES = ("torch", "timm", "torchvision", "numpy", "Pillow", "triton", "apex", "nvidia-dali-cuda120",
             "nvidia-dali-cuda130", "nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13", "nvidia-cudnn-cu12",
             "nvidia-cudnn-cu13")  # fmt: skip
_SMI = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"


def describe_machine(device: torch.device) -> dict[str, Any]:
    """CPU and, if there is one, GPU, with the present clocks and power, which this code never changes."""
    try:
        memory = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        memory = 0
    machine: dict[str, Any] = {
        "cpu": describe_cpu(),
        "cores": cpu_threads(),
        "memory_gib": round(memory / 2**20, 1),
        "load_average": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "gpu_state": gpu_state(device),
        }
    return machine


def gpu_state(device: torch.device) -> dict[str, Any]:
    """Driver, clocks (MHz), power (W) and temperature from nvidia-smi; empty where it cannot be run."""
    try:
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        command = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={_SMI}", "--format=csv,noheader,nounits"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError, AttributeError):
        return {}
    return dict(zip(_SMI.split(","), map(str.strip, answer.strip().split(",")), strict=False))


@cache
def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
