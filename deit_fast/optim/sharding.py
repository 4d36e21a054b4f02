"""Sharded weights as plain tensors for the optimizer and for checkpoints; training/sharding.py shards the model.

Every process holds a share of each tensor's rows, with its gradient, moments and average. The shares are torch.chunk's,
so the last ones may be short or empty. A block's weights are whole only while the block computes.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(value: Any) -> "TypeGuard[DTensor]":
    """Whether this tensor is sharded over the processes.

    Importing the module of sharded tensors takes half a second, which a run without such tensors saves.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def cut(whole: Tensor, like: "DTensor") -> "DTensor":
    """A whole tensor [R, ...], in host memory or a mapped file, sharded like `like` [R, ...]; reads no other rows.

    distribute_tensor(src_data_rank=None) is not used, because it moves the whole tensor to the device first: on a GPU
    every process would read the whole file. On a CPU both ways read the same, half of a mapped tensor for two
    processes.
    """
    own = like.to_local()
    start, stop = _own_rows(like)
    rows = torch.empty_like(own).copy_(whole[start:stop])
    return _join(rows, like)


def cut_weights(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Whole tensors [R, ...] for the model's load_state_dict: sharded where the model's own tensor is sharded."""
    own = model.state_dict()
    return {
        name: cut(value, like) if is_sharded(like := own.get(name)) and like.shape == value.shape else value
        for name, value in weights.items()
    }


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor [R, ...] on this process: its rows [r, ...] if it is sharded, else the whole tensor."""
    with torch.no_grad():
        return tensor.to_local() if is_sharded(tensor) else tensor


def gather(content: Any) -> None:
    """Called by the other processes while the main process copies `content`: every sharded tensor is gathered once.

    content: the same nested dicts and lists of tensors as in the main process.
    """
    if is_sharded(content):
        content.full_tensor()
    elif isinstance(content, dict | list | tuple):
        for value in content.values() if isinstance(content, dict) else content:
            gather(value)


class Shards:
    """This process's rows of each weight of a sharded model, as plain parameters for an optimizer.

    The rows share memory with the model's weights. torch's fused kernels and Triton handle plain tensors only, and
    every operation on a DTensor takes time on the host.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module) -> None:
        self._leaves: dict[DTensor, nn.Parameter] = {
            param: nn.Parameter(param.to_local(), requires_grad=param.requires_grad)
            for param in model.parameters()
            if is_sharded(param)
        }
        self._whole: dict[Tensor, DTensor] = {leaf: param for param, leaf in self._leaves.items()}

    def leaf(self, param: Tensor) -> nn.Parameter:
        """This process's rows [r, ...] of the model's `param` [R, ...], as the optimizer's parameter."""
        assert is_sharded(param)
        return self._leaves[param]

    def parts(self, param: Tensor, count: int) -> list[int]:
        """How many rows of each of `count` equal parts of `param` [R, ...] this process holds, in order."""
        assert is_sharded(param)
        start, stop = _own_rows(param)
        size = len(param) // count
        return [max(0, min(stop, end) - max(start, end - size)) for end in range(size, len(param) + 1, size)]

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Moves the gradients from the model's parameters to the optimizer's."""
        for param, leaf in self._leaves.items():
            leaf.grad = param.grad.to_local() if is_sharded(param.grad) else None
            param.grad = None

    @staticmethod
    def add_up(values: Tensor) -> Tensor:
        """Sums `values` [n] over all processes, in place, and returns them."""
        dist.all_reduce(values)
        return values

    def join_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state dict with its moments as sharded tensors, of which each process has its rows."""

        def join(value: Any, leaf: Tensor) -> Any:
            return _join(value, self._whole[leaf]) if _is_moment(value, leaf) else value

        return _map_state(optimizer, optimizer.state_dict(), join)

    def cut_state(self, optimizer: torch.optim.Optimizer, content: dict[str, Any]) -> dict[str, Any]:
        """Converts a state dict of whole tensors in host memory to the form that this process's optimizer loads."""
        device = next(iter(self._whole)).device

        def share(value: Any, leaf: Tensor) -> Any:
            whole = self._whole[leaf]
            return cut(value, whole).to_local() if _is_moment(value, whole) else value

        groups = [
            {key: value.to(device) if isinstance(value, Tensor) else value for key, value in group.items()}
            for group in content["param_groups"]
        ]
        return {**_map_state(optimizer, content, share), "param_groups": groups}


def _is_moment(value: Any, like: Tensor) -> bool:
    """Whether a part of an optimizer's state has the parameter's elements, and is not a counter."""
    return isinstance(value, Tensor) and value.shape == like.shape


def _map_state(
    optimizer: torch.optim.Optimizer, content: dict[str, Any], change: Callable[[Any, Tensor], Any]
) -> dict[str, Any]:
    """torch's state dict, which numbers parameters by position, with `change` applied to each value."""
    leaves = [leaf for group in optimizer.param_groups for leaf in group["params"]]
    state = {
        index: {key: change(value, leaves[index]) for key, value in values.items()}
        for index, values in content["state"].items()
    }
    return {**content, "state": state}


def _own_rows(tensor: "DTensor") -> tuple[int, int]:
    """The first row of this process's share, and the row after its last."""
    size = -(-len(tensor) // tensor.device_mesh.size())
    start = min(len(tensor), size * tensor.device_mesh.get_local_rank())
    return start, min(len(tensor), start + size)


def _join(rows: Tensor, like: "DTensor") -> "DTensor":
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(rows, like.device_mesh, like.placements, run_check=False, shape=like.shape,
                              stride=like.stride())  # fmt: skip
