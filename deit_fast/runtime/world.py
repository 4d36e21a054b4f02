"""The processes of a run: this process's rank and device, and the few collectives in use. torchrun starts them."""

import itertools
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from deit_fast.runtime.errors import RunError
from deit_fast.runtime.hardware import describe_cudnn, describe_hidden_gpu

COLLECTIVE_SECONDS = 1800.0  # other processes may be compiling
_GROUPS = itertools.count()  # number of groups made so far, the same in all processes


@dataclass(frozen=True)
class World:
    """This process among the run's: its rank, from 0 to size - 1, and the device on which it computes."""

    rank: int
    size: int
    device: torch.device
    joined: bool = False
    """Whether `join_world` made the group, which `leave_world` then ends; a caller's own group is left alone."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    @property
    def node_ranks(self) -> range:
        """The ranks of this machine's processes, which are consecutive; this rank alone if no launcher tells them."""
        first = self.rank - int(os.environ.get("LOCAL_RANK", "0"))
        after = first + int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        told = 0 <= first <= self.rank < after <= self.size
        return range(first, after) if told else range(self.rank, self.rank + 1)

    def sum(self, values: Tensor) -> Tensor:
        """Sums a tensor of any shape [...] on `device` over all processes, in place, and returns it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all get the same answer. Uses CPU memory."""
        if self.size == 1:
            return flag
        seen = torch.tensor(int(flag))
        dist.all_reduce(seen, dist.ReduceOp.MAX)
        return bool(seen)

    def broadcast(self, value: Any) -> Any:
        """The main process's value, in every process; plain data."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value by rank, in every process; plain data."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Waits until all processes have called this."""
        if self.size > 1:
            dist.barrier()


def join_world(hang_timeout: float = 0.0, wanted: str = "auto") -> World:
    """Joins the process group that torchrun describes in the environment (gloo on CPUs, NCCL on GPUs), or stands alone.

    A collective fails after half an hour or twice `hang_timeout` seconds, that is after the watchdog, whose message
    says more. wanted: as in `choose_device`, whose errors are raised.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device(wanted)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    joins = size > 1 and not dist.is_initialized()
    if joins:
        on_gpu = device.type == "cuda"
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.PrefixStore(f"group {next(_GROUPS)}", _shared_store()),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=max(COLLECTIVE_SECONDS, 2 * hang_timeout)),
            device_id=device if on_gpu else None,
        )
    return World(rank, size, device, joins)


@cache
def _shared_store() -> dist.Store:
    """The store through which the processes find each other, one for the life of a process.

    Each group has its own keys in it. torchrun's store keeps the keys of an ended group, and a process that reused them
    would connect to that group's addresses.
    """
    return next(iter(dist.rendezvous("env://", timeout=timedelta(seconds=COLLECTIVE_SECONDS))))[0]


def choose_device(wanted: str = "auto") -> torch.device:
    """The GPU with this process's number on its host, or the CPU without GPUs. Waits for no other process.

    wanted: run.device. With "auto" the main process prints a line if the machine has a GPU that torch does not see.
    Raises RunError where there are more processes than GPUs, and with "cuda" where torch sees none.
    """
    rank, index = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        hidden = describe_hidden_gpu()
        if wanted == "cuda":
            raise RunError(f"run.device='cuda': expected an NVIDIA GPU that torch sees, {hidden or 'found none here'}")
        if hidden and rank == 0:
            print(f"deit-fast: WARNING: {hidden}; running on the CPU", file=sys.stderr, flush=True)
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise RunError(
            f"rank {rank}: LOCAL_RANK={index}: expected less than the {torch.cuda.device_count()} visible "
            "GPUs; start one process per GPU"
        )
    _avoid_unsound_attention(rank)
    return torch.device("cuda", index)


def _avoid_unsound_attention(rank: int) -> None:
    """Switches cuDNN's attention off where it is wrong; the main process says why."""
    complaint = describe_cudnn(torch.backends.cudnn.version())
    if complaint:
        torch.backends.cuda.enable_cudnn_sdp(False)
        if rank == 0:
            print(complaint, file=sys.stderr, flush=True)


def leave_world(world: World) -> None:
    """Ends the group that `join_world` made.

    Only for a process whose peers end too, since others may wait in the group.
    """
    if world.joined and dist.is_initialized():
        dist.destroy_process_group()


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy of a host array of any shape [...] on the device, same shape and type; does not wait for a GPU's copy."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
