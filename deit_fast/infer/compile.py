"""torch.compile, tried before a run relies on it: if the trial fails, all processes run eagerly and one says so."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from deit_fast.models.build import ImageModel, build_model
from deit_fast.models.recompute import recompute
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import Run
from deit_fast.runtime.errors import RunError, one_line
from deit_fast.runtime.world import World


def wants_compile(run: Run, device: torch.device) -> bool:
    """Whether torch.compile is tried: as run.compile says, by default on GPUs only."""
    return run.compile == "on" or (run.compile == "auto" and device.type == "cuda")


def compile_or_stay(module: nn.Module, attempt: Callable[[nn.Module], object], run: Run, world: World) -> nn.Module:
    """`module` compiled, if the run wants that and `attempt` succeeds in every process; else `module` unchanged.

    torch.compile compiles at the first call only, so `attempt` makes one, with the shapes that will follow. All
    processes have to call this together, and all get the same kind of module. If an attempt fails, the main process
    prints the reason; with run.compile="on" all processes raise RunError instead. An error from outside the compiler,
    such as memory that runs out, is raised as it is.
    """
    if not wants_compile(run, world.device):
        return module
    compiled = cast(nn.Module, torch.compile(module))
    reason = ""
    try:
        _attempt_compiled(attempt, compiled)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers and their tools raise many kinds
        reason = f"{type(error).__name__}: {one_line(error)}"[:200]
    failed = [f"rank {rank}, {found}" if rank else found for rank, found in enumerate(world.gather(reason)) if found]
    if not failed:
        return compiled
    torch._dynamo.reset()  # drops half-finished compilations
    if run.compile == "on":
        raise RunError(f"run.compile='on': expected a machine where torch.compile works ({failed[0]})")
    if world.is_main:
        print(f"torch.compile failed ({failed[0]}): running eagerly", flush=True)
    return module


def _attempt_compiled(attempt: Callable[[nn.Module], object], compiled: nn.Module) -> None:
    """Calls the compiled module once, and makes sure that it runs compiled: torch may fall back to eager silently.

    Graphs belong to the code from which they were traced, so models of one class in one process share a limit
    (torch._dynamo.config.recompile_limit). If this module reaches the limit, the graphs of earlier models are dropped.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit  # importing the compiler takes a second

    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        try:
            attempt(compiled)
        except FailOnRecompileLimitHit:
            torch._dynamo.reset()
            attempt(compiled)


def compile_blocks(
    models: Sequence[ImageModel], recipe: Recipe, compute: Callable[[nn.Module, Tensor], Tensor], world: World
) -> None:
    """Compiles each block of sharded models by itself, in place, if the run wants that and a trial succeeds.

    FSDP frees and gathers weights between the blocks, and no graph can include that. The trial uses a block of its own,
    because a process on which it failed within a step would leave the others waiting. compute: a module's result for
    tokens [B, N, D], in the type of the run. Raises what `compile_or_stay` raises.
    """
    if not wants_compile(recipe.run, world.device):
        return
    size = recipe.model.image_size
    with torch.device("meta"):
        like = build_model(recipe.model)
        inputs: list[Tensor] = []
        hook = like.blocks[0].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        like(torch.empty(recipe.pass_size(world.size), 3, size, size))
        hook.remove()
    recompute(like, recipe.run)
    trial = cast(nn.Module, like.blocks[0]).to_empty(device=world.device)
    tokens = torch.zeros(inputs[0].shape, device=world.device, requires_grad=True)

    def attempt(block: nn.Module) -> None:
        with _own_random_state(world.device):
            torch.autograd.backward(compute(block, tokens).sum())

    if compile_or_stay(trial, attempt, recipe.run, world) is trial:
        return
    # Training, evaluation and each rate of stochastic depth need a graph each. The limit is set for the process,
    # because torch.compile takes a limit per function only since torch 2.12.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4 * sum(len(model.blocks) for model in models))
    for model in models:
        for block in model.blocks:
            block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False)


def try_gradient(objective: nn.Module, batch: tuple[Any, ...], device: torch.device) -> None:
    """Runs a forward and backward pass that changes no gradients, no random state and no running statistics.

    batch: the objective's arguments, on the device.
    """
    buffers = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    with _own_random_state(device):
        try:
            loss = objective(*batch)
            # Not backward(), which would call the hooks that DDP puts on the parameters, and fill their gradients.
            torch.autograd.grad(loss, [p for p in objective.parameters() if p.requires_grad], allow_unused=True)
        finally:
            with torch.no_grad():
                for name, buffer in objective.named_buffers():
                    buffer.copy_(buffers[name])


def _own_random_state(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Restores torch's generators at its end."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [], device_type=device.type)


class CompiledPredictor:
    """A classifier for evaluation: compiled at its first batch, or eager if that fails."""

    def __init__(self, classifier: nn.Module, run: Run, world: World) -> None:
        self._classifier, self._run, self._world = classifier, run, world
        self._chosen: nn.Module | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, K] of uint8 images [B, 3, S, S]. All processes make their first call together."""
        if self._chosen is None:
            self._chosen = compile_or_stay(self._classifier, lambda module: module(images), self._run, self._world)
        return cast(Tensor, self._chosen(images))
