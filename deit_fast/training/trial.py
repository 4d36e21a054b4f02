"""Tries a training step with black images, to see whether it fits into memory. The trial leaves nothing behind."""

import gc
from types import TracebackType
from typing import Self

import torch

from deit_fast.checkpoint.state import TrainState
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import is_out_of_memory, one_line
from deit_fast.runtime.world import World
from deit_fast.training.distill import Teacher
from deit_fast.training.memory import HEADROOM
from deit_fast.training.objective import Objective, blank_batch
from deit_fast.training.prepare import build_objective, initial_state


class StepTrial:
    """Tries eager steps with a state of its own; a context manager that frees the memory at its end.

    The processes do not communicate in it, so that one that fails blocks no other. torch.compile is not tried: it would
    take a minute for every size, and compiled steps need less memory.
    """

    def __init__(self, recipe: Recipe, world: World, dtype: torch.dtype, teacher: Teacher | None) -> None:
        self._recipe, self._world, self._dtype, self._teacher = recipe, world, dtype, teacher
        self._built: tuple[TrainState, Objective] | None = None
        self.failure = ""
        """The error of the last try that did not fit into memory."""

    def __call__(self, passes: int, images: int) -> bool:
        """Whether a step of `passes` passes of `images` images each fits on this process's device."""
        device = self._world.device
        free_memory(device)
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type=device.type):
                self._step(images, 2 if passes > 1 or self._world.size > 1 else 1)
            if device.type == "cuda":
                free, total = torch.cuda.mem_get_info(device)
                if free < (1 - HEADROOM) * total:
                    self.failure = f"it leaves {free / 2**30:.1f} of {total / 2**30:.1f} GiB"
                    return False
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.failure = one_line(error)[:160] or type(error).__name__
            return False
        return True

    def _step(self, images: int, passes: int) -> None:
        """Runs one or two passes: in the second one gradients exist already, as they always do in DDP's buckets."""
        if self._built is None:
            state = initial_state(self._recipe, self._world)
            self._built = state, build_objective(self._recipe, state, self._world, self._dtype, self._teacher)
        state, objective = self._built
        state.optimizer.zero_grad(set_to_none=True)
        batch = blank_batch(self._recipe, images, self._world.device)
        for _ in range(passes):
            loss = objective(*batch)
            with objective.classifier.attention():
                loss.backward()
            del loss
        state.optimizer.step()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._built = None
        free_memory(self._world.device)


def free_memory(device: torch.device) -> None:
    """Frees unused memory, and resets the peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
