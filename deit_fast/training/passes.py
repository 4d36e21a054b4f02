"""How many passes a step takes: run.accumulation=auto, as few as fit into memory; the same on all processes.

The global batch stays what the recipe says. The number changes how sums are rounded, and for which batches stochastic
depth draws: a checkpoint holds it, and a run that goes on with as many processes keeps it.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deit_fast.models.build import check_drop_path
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import LacksMemoryError, RecipeError
from deit_fast.runtime.files import cache_folder
from deit_fast.runtime.host_memory import available_memory
from deit_fast.runtime.remembered import read_remembered, remember
from deit_fast.runtime.world import World
from deit_fast.training.distill import Teacher
from deit_fast.training.memory import HEADROOM, step_memory, too_high
from deit_fast.training.prepare import check_machine
from deit_fast.training.trial import StepTrial

GIB = 2**30


class Passes(NamedTuple):
    """A recipe whose number of passes is settled, and in words why it is that one."""

    recipe: Recipe
    reason: str


class Kept(NamedTuple):
    """What a checkpoint says of its passes."""

    passes: int
    processes: int | None
    """None: an earlier version wrote it, and it says nothing of them."""


def settle_passes(recipe: Recipe, world: World, kept: Kept | None = None, teacher: Teacher | None = None) -> Passes:
    """The recipe with a number in run.accumulation; all processes call it together. The first that applies:

    1. the number that the recipe gives;
    2. `kept`, that of the checkpoint from which the run goes on, with as many processes;
    3. the smallest that fits into every process's memory. On GPUs a step is tried, and the result remembered for the
       machine, the model and the resolution; on CPUs, and for a model that FSDP cuts up, it is calculated.

    Raises RecipeError where the batch cannot be divided, LacksMemoryError where nothing fits on a GPU.
    """
    if recipe.run.accumulation != "auto":
        return Passes(recipe, "run.accumulation")
    possible = possible_passes(recipe, world.size)
    if kept is not None and kept.processes in (None, world.size) and kept.passes in possible:
        return Passes(with_passes(recipe, kept.passes), "the checkpoint's number")
    if len(possible) == 1:
        return Passes(with_passes(recipe, possible[0]), "no other divides the batch")
    if tries_steps(recipe, world):
        found = _by_trial(recipe, world, possible, teacher)
    else:
        found = _by_memory(recipe, world, possible)
    return Passes(with_passes(recipe, found[0]), found[1])


def with_passes(recipe: Recipe, passes: int) -> Recipe:
    """The recipe with this number. Raises RecipeError where it cannot be."""
    return recipe.derive(run={"accumulation": passes})


def possible_passes(recipe: Recipe, processes: int) -> list[int]:
    """The numbers of passes, from the smallest, by which the batch can be divided over so many processes.

    Raises RecipeError, about the smallest, where there is none.
    """
    batch, found, refusal = recipe.run.global_batch, list[int](), None
    for passes in range(1, batch // processes + 1):
        if passes > 1 and batch % (processes * passes):
            continue
        try:
            candidate = with_passes(recipe, passes)
            candidate.check_processes(processes)
            check_drop_path(candidate.model, candidate.pass_size(processes))
        except RecipeError as error:
            refusal = refusal or error
        else:
            found.append(passes)
    if not found:
        raise refusal or RecipeError(f"run.global_batch={batch}: expected at least {processes}, one per process")
    return found


def next_passes(recipe: Recipe, processes: int) -> int | None:
    """The smallest number of passes above the recipe's whose batches are half as large or less; None: there is none."""
    bound = 2 * recipe.run.passes
    return next((each for each in possible_passes(recipe, processes) if each >= bound), None)


def tries_steps(recipe: Recipe, world: World) -> bool:
    """Whether steps are tried. Not with FSDP: a process that fails amid a collective would leave the others waiting."""
    return world.device.type == "cuda" and (recipe.run.parallel == "ddp" or world.size == 1)


# ------------------------------------------------------------------------------------------------------- on a GPU
def _by_trial(recipe: Recipe, world: World, possible: Sequence[int], teacher: Teacher | None) -> tuple[int, str]:
    memory = PassMemory(recipe, world)
    with StepTrial(recipe, world, check_machine(recipe.run, world), teacher) as trial:
        found, tried = first_that_fits(recipe, world, possible, trial, memory)
        if found is None and not tried:  # something else may have had the memory then
            memory.forget()
            found, tried = first_that_fits(recipe, world, possible, trial, memory)
    if found is None:
        least = recipe.run.global_batch // (world.size * possible[-1])
        raise LacksMemoryError(
            f"run.accumulation=auto: not even {least} images a pass fit ({trial.failure}); run.grad_checkpointing=true "
            "or a smaller model.image_size takes less, and run.parallel=fsdp shares the weights over processes"
        )
    return found, "found by a trial" if tried else f"found by an earlier trial, {memory.path}"


def first_that_fits(
    recipe: Recipe, world: World, possible: Sequence[int], attempt: Callable[[int, int], bool], memory: "PassMemory"
) -> tuple[int | None, bool]:
    """The first of the `possible` numbers that fits on every process, None where none does; and whether any was tried.

    attempt: called with a number of passes and the images of each, says whether that fits here. All processes try the
    same, and one's failure is a failure of all; what each remembers of earlier trials is not tried again.
    """
    tried = False
    for passes in possible:
        images = recipe.run.global_batch // (world.size * passes)
        known = world.gather(memory.recall(images))
        if False in known:
            continue
        if None in known:
            fits = not world.any(not attempt(passes, images))
            tried = True
            memory.note(images, fits)
        else:
            fits = True
        if fits:
            return passes, tried
    return None, tried


class PassMemory:
    """What earlier trials on this machine found of a model: passes of how many images fit, and of how many do not."""

    def __init__(self, recipe: Recipe, world: World) -> None:
        self.path: Path = cache_folder() / "passes.json"
        self._key = _key(recipe, world)
        self._world, self._writes = world, world.rank == world.node_ranks[0]

    def recall(self, images: int) -> bool | None:
        """Whether a pass of so many images fits; None where nobody knows."""
        fits, fails = self._read()
        return True if fits is not None and images <= fits else False if fails is not None and images >= fails else None

    def note(self, images: int, fits: bool) -> None:
        """Keeps what a trial, or a run that ended for want of memory, has shown; the later one is right."""
        most, least = self._read()
        if fits:
            most, least = max(images, most or 0), None if least is not None and least <= images else least
        else:
            most, least = None if most is not None and most >= images else most, min(images, least or images)
        if self._writes:
            remember(self.path, self._key, {"fits": most, "fails": least})

    def forget(self) -> None:
        """Takes back all that was kept; all processes call it together, and see it."""
        if self._writes:
            remember(self.path, self._key, None)
        self._world.barrier()

    def _read(self) -> tuple[int | None, int | None]:
        found = read_remembered(self.path).get(self._key)
        found = found if isinstance(found, dict) else {}
        fits, fails = (each if type(each) is int and each > 0 else None for each in map(found.get, ("fits", "fails")))
        return fits, fails


def _key(recipe: Recipe, world: World) -> str:
    """The machine, the model at its resolution, and a digest of whatever else a step's memory depends on."""
    content, model = recipe.model_dump(mode="json"), recipe.model
    run = {key: content["run"][key] for key in ("precision", "compile", "compute_copy", "parallel",
                                                "reduce_dtype", "grad_checkpointing")}  # fmt: skip
    rest: list[Any] = [content["model"], run, recipe.optim.name, recipe.optim.ema_decay is None, recipe.optim.trainable,
                       recipe.mix.active, recipe.loss.cosub, content["distill"], recipe.augment.erase > 0,
                       world.size > 1, torch.__version__]  # fmt: skip
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]
    return f"{describe_device(world.device)}, {model.name} at {model.image_size} px, {digest}"


def describe_device(device: torch.device) -> str:
    """The GPU's name and memory, or "CPU"."""
    if device.type != "cuda":
        return "CPU"
    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, {found.total_memory / GIB:.1f} GiB"


# ------------------------------------------------------------------------------------------------- by calculation
def _by_memory(recipe: Recipe, world: World, possible: Sequence[int]) -> tuple[int, str]:
    """The first of the possible numbers by calculation, the largest where none fits: an estimate refuses no run."""
    free = _free_memory(world)
    passes = possible[0] if free is None else _calculated(recipe, world, possible, free)
    passes = max(world.gather(passes))
    return passes, "found by the free memory" if free is not None else "the free memory is not known"


def _free_memory(world: World) -> float | None:
    if world.device.type == "cuda":
        return torch.cuda.mem_get_info(world.device)[0] * HEADROOM
    available = available_memory()
    return None if available is None else available * HEADROOM / len(world.node_ranks)


def _calculated(recipe: Recipe, world: World, possible: Sequence[int], free: float) -> int:
    dtype, on_gpu = check_machine(recipe.run, world), world.device.type == "cuda"
    for passes in possible:
        images = recipe.run.global_batch // (world.size * passes)
        if too_high(recipe, images) <= free:  # a trace takes a second
            return passes
        if step_memory(with_passes(recipe, passes), images, dtype, world.size, on_gpu).peak <= free:
            return passes
    return possible[-1]
