"""A model on several processes: a whole copy in each (DDP), or sharded blocks that are gathered one by one (FSDP2).

Sharded weights are gathered in fp32 and cast by autocast, as without sharding. The results are therefore the same, and
norms and LayerScale are not rounded. optim/sharding.py handles the sharded tensors of the optimizer and of checkpoints.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from deit_fast.recipe.sections import Run
from deit_fast.runtime.world import World

Exchange = Callable[[bool], AbstractContextManager[object]]
"""Takes whether a backward pass is the step's last one; returns the context in which gradients are exchanged or not."""


def build_mesh(run: Run, world: World) -> DeviceMesh | None:
    """The mesh of all processes, over which a run shards its weights; None if each process has whole weights."""
    if run.parallel == "ddp" or world.size == 1:
        return None
    return init_device_mesh(world.device.type, (world.size,))


def shard_model(model: nn.Module, mesh: DeviceMesh, reduce_dtype: str) -> None:
    """Shards a model in host memory over the devices of `mesh`, in place.

    reduce_dtype: "fp32" or "bf16", the type in which gradients are averaged.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # importing it imports the compiler

    options: Any = {
        "mesh": mesh,
        # True for the root as well, which torch would keep whole. A model that is only evaluated, as the moving average
        # is, has no backward pass that frees the root's weights, and would go on with those of its first evaluation.
        "reshard_after_forward": True,
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if reduce_dtype == "bf16" else None),
    }
    for block in _blocks_of(model):
        fully_shard(block, **options)
    fully_shard(model, **options)


def exchange_in_shards(model: nn.Module) -> Exchange:
    """The exchange of a sharded model's gradients: only a step's last backward pass sends them.

    Earlier backward passes of the step add their gradients up in this process.
    """

    from torch.distributed.fsdp import FSDPModule

    def exchange(last: bool) -> AbstractContextManager[object]:
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    return exchange


def replicate(objective: nn.Module, run: Run) -> tuple[nn.Module, Exchange]:
    """The objective in DDP, which averages gradients in run.reduce_dtype during the backward pass."""
    ddp = DistributedDataParallel(
        objective,
        gradient_as_bucket_view=True,
        static_graph=run.passes == 1,  # a static graph does not allow no_sync
    )
    if run.reduce_dtype == "bf16":
        ddp.register_comm_hook(None, bf16_compress_hook)
    return ddp, lambda last: contextlib.nullcontext() if last else ddp.no_sync()


def _blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The residual blocks of a model: timm's `blocks`, and CaiT's and PatchConvNet's `blocks_token_only`."""
    for name, child in model.named_children():
        if name.startswith("blocks"):
            yield from child.children()
