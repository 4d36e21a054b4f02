"""Processes: who this one is, and the few collectives the rest needs. torchrun starts them."""

import os
import resource
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from deit_fast.runtime.errors import RunError

COLLECTIVE_SECONDS = 1800.0  # other processes may compile meanwhile
SOUND_CUDNN = 91501  # 9.15.1


@dataclass(frozen=True)
class World:
    """This process among the run's."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes; the same tensor when there is one."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; all get the same answer, through CPU memory."""
        if self.size == 1:
            return flag
        seen = torch.tensor(int(flag))
        dist.all_reduce(seen, dist.ReduceOp.MAX)
        return bool(seen)

    def broadcast(self, value: Any) -> Any:
        """The main process's value on every process; plain data."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value by rank, on every process; plain data."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def join_world(hang_timeout: float = 0.0) -> World:
    """Joins the group torchrun describes in the environment (gloo on CPUs, NCCL on GPUs), or stands alone.

    A collective fails after half an hour, or twice `hang_timeout`, seconds: after the watchdog, which says more.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.index >= torch.cuda.device_count():
            raise RunError(
                f"rank {rank}: LOCAL_RANK={device.index}: expected less than the {torch.cuda.device_count()} visible "
                "GPUs; start one process per GPU"
            )
        torch.cuda.set_device(device)
        complaint = describe_cudnn(torch.backends.cudnn.version())
        if complaint:
            torch.backends.cuda.enable_cudnn_sdp(False)
            if rank == 0:
                print(complaint, file=sys.stderr, flush=True)
    else:
        device = torch.device("cpu")
    if size > 1 and not dist.is_initialized():
        on_gpu = device.type == "cuda"
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            timeout=timedelta(seconds=max(COLLECTIVE_SECONDS, 2 * hang_timeout)),
            device_id=device if on_gpu else None,
        )
    return World(rank, size, device)


def describe_cudnn(version: int | None) -> str:
    """One line on a cuDNN (torch.backends.cudnn.version()) whose attention must not be used; empty where it may be.

    Before 9.15.1 it is wrong for sequences whose length no 128 divides, which all of ours are (pytorch issue 169849).
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


def leave_world() -> None:
    """Ends the group. Only for a process whose peers end too: after an error, others may wait in a collective."""
    if dist.is_initialized():
        dist.destroy_process_group()


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


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy of a host array on the device, without waiting for it."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def cpu_threads() -> int:
    """CPU cores for each process of this host."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def peak_memory(device: torch.device) -> float:
    """GiB: the GPU's high-water mark of torch's allocator, or this process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
