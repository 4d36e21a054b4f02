"""Properties of this machine: cores, bf16, cuDNN and memory.

psutil is not used here. The standard library gives a process's CPU affinity too, and psutil gives neither the peak
memory of a Linux process, nor instruction sets, nor cuDNN's version.
"""

import os
import platform
import resource
from pathlib import Path

import torch

SOUND_CUDNN = 91501  # 9.15.1


def cpu_threads() -> int:
    """CPU cores for each of this host's processes."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run in hardware on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as cpuinfo:
            flags = next((line for line in cpuinfo if line.startswith(("flags", "Features"))), "").split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def peak_memory(device: torch.device) -> float:
    """Peak memory so far, GiB: of torch's allocator on a GPU, of this process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def describe_cpu() -> str:
    """The CPU's name, from the kernel."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def describe_hidden_gpu(proc: Path = Path("/proc/driver/nvidia/gpus"), devices: Path = Path("/dev")) -> str:
    """Why torch cannot use an NVIDIA GPU of this machine, if it sees none; "" where the machine has none."""
    found = next(
        (path for folder, names in ((proc, "*"), (devices, "nvidia[0-9]*")) for path in folder.glob(names)), ""
    )
    if not found:
        return ""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} is built without CUDA"
    elif hidden is not None and not hidden.replace("-1", "").strip(" ,"):
        reason = f"CUDA_VISIBLE_DEVICES={hidden!r} hides it"
    else:
        try:
            torch.cuda.init()
            reason = "torch.cuda.is_available() says no"
        except Exception as error:  # an old or broken driver, or a device that may not be opened
            reason = " ".join(str(error).split())[:200]
    return f"this machine has an NVIDIA GPU ({found}) that torch does not see: {reason}"


def describe_cudnn(version: int | None) -> str:
    """A line about a cuDNN (torch.backends.cudnn.version()) whose attention is wrong; "" for a sound version.

    Versions before 9.15.1 are wrong for sequence lengths that are no multiple of 128, as all lengths here are (pytorch
    issue 169849).
    """
    if version is None:
        return "no cuDNN found: attention runs on torch's flash kernels, which are slower on H100 and newer GPUs"
    if version >= SOUND_CUDNN:
        return ""
    major, rest = divmod(version, 10_000 if version >= 90_000 else 1000)  # 91501 is 9.15.1, 8902 is 8.9.2
    return (
        f"cuDNN {major}.{rest // 100}.{rest % 100} found, expected 9.15.1 or newer: its attention is wrong for the "
        "lengths of ViTs (pytorch issue 169849) and is off; torch's flash kernels are slower on H100 and newer. Does "
        "LD_LIBRARY_PATH hide the cuDNN that torch came with?"
    )
