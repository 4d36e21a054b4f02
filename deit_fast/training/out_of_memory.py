"""The one-line message of a run that ran out of memory, with a value of run.accumulation to continue with."""

from types import TracebackType
from typing import Self

from deit_fast.checkpoint.state import TrainState
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import LacksMemoryError, is_out_of_memory, one_line
from deit_fast.runtime.world import World
from deit_fast.training.passes import PassMemory, describe_device, next_passes


class MemoryGuard:
    """Turns an out-of-memory error of torch, a library or Python into an error of one line; a context manager.

    Raises LacksMemoryError in its place. The size that did not fit is remembered, so that a new run does not try it.
    """

    def __init__(self, recipe: Recipe, world: World) -> None:
        self.recipe = recipe
        """The run's recipe, with a number of passes once that is settled."""
        self.state: TrainState | None = None
        """The run's state, once it exists."""
        self._world = world

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None or isinstance(error, LacksMemoryError) or not is_out_of_memory(error):
            return
        world, run = self._world, self.recipe.run
        if self.state is not None and world.device.type == "cuda":
            PassMemory(self.recipe, world).note(run.global_batch // (world.size * run.passes), fits=False)
        step = None if self.state is None else self.state.step
        raise LacksMemoryError(explain_lack(error, self.recipe, world, step)) from error


def explain_lack(error: BaseException, recipe: Recipe, world: World, step: int | None) -> str:
    """The line about a run that ran out of memory: where, and a value of run.accumulation to continue with.

    step: the number of steps done; None if training had not begun.
    """
    where = f"rank {world.rank}, {describe_device(world.device)}"
    what = f"out of memory ({where}: {one_line(error)[:160] or type(error).__name__})"
    if step is None:
        return (
            f"{what} before the first step: weights, moments and average alone are too large; run.parallel=fsdp shares "
            "them over processes, and optim.ema_decay=null does without the average"
        )
    passes, images = next_passes(recipe, world.size), recipe.run.global_batch // (world.size * recipe.run.passes)
    if passes is None:
        return (
            f"{what} after step {step}, with {images} images a pass, which cannot be fewer: "
            "run.grad_checkpointing=true takes less, and run.parallel=fsdp shares the weights over processes"
        )
    fewer = recipe.run.global_batch // (world.size * passes)
    return (
        f"{what} after step {step}: run.accumulation={passes} makes it {fewer} images a pass instead of {images}; the "
        "same command with that word goes on from the run's last checkpoint"
    )
