"""torch.compile, tried out before a run relies on it: where it fails, every process goes on eagerly and one says so."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from deit_fast.distributed import World
from deit_fast.errors import RunError, one_line
from deit_fast.sections import Run


def wants_compile(run: Run, device: torch.device) -> bool:
    return run.compile == "on" or (run.compile == "auto" and device.type == "cuda")


def compile_or_stay(module: nn.Module, attempt: Callable[[nn.Module], object], run: Run, world: World) -> nn.Module:
    """`module` compiled, where the run wants that and `attempt` succeeds with it on every process; else as it is.

    torch.compile works at the first call only, so `attempt` makes one, with the shapes that will come. All processes
    have to call this together, and all get the same kind of module. Where it fails, the main process prints why.
    Raises RunError on all of them where run.compile is "on", and what is no failure of the compiler: out of memory.
    """
    if not wants_compile(run, world.device):
        return module
    compiled = cast(nn.Module, torch.compile(module))
    reason = ""
    try:
        attempt(compiled)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers and their tools raise what they like
        reason = f"{type(error).__name__}: {one_line(error)}"[:200]
    failed = [f"rank {rank}, {found}" if rank else found for rank, found in enumerate(world.gather(reason)) if found]
    if not failed:
        return compiled
    torch._dynamo.reset()  # what was half compiled
    if run.compile == "on":
        raise RunError(f"run.compile='on': expected a machine where torch.compile works ({failed[0]})")
    if world.is_main:
        print(f"torch.compile failed ({failed[0]}): running eagerly", flush=True)
    return module


def try_gradient(objective: nn.Module, batch: tuple[Any, ...], device: torch.device) -> None:
    """A forward and backward pass that leaves no trace: no gradients, random state and running statistics as before."""
    buffers = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type=device.type):
        try:
            loss = objective(*batch)
            # Not backward(): it would call the hooks that DDP puts on the parameters, and fill their gradients.
            torch.autograd.grad(loss, [p for p in objective.parameters() if p.requires_grad], allow_unused=True)
        finally:
            with torch.no_grad():
                for name, buffer in objective.named_buffers():
                    buffer.copy_(buffers[name])


class CompiledPredictor:
    """A classifier in evaluation, compiled at its first batch or, where that fails, eager."""

    def __init__(self, classifier: nn.Module, run: Run, world: World) -> None:
        self._classifier, self._run, self._world = classifier, run, world
        self._chosen: nn.Module | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, K] of uint8 images [B, 3, S, S]; all processes make their first call together."""
        if self._chosen is None:
            self._chosen = compile_or_stay(self._classifier, lambda module: module(images), self._run, self._world)
        return cast(Tensor, self._chosen(images))
