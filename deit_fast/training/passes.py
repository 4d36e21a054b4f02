"""The number of passes per step. run.accumulation=auto means as few as fit into memory, the same in all processes.

The global batch does not change. The number of passes affects rounding of sums, and the batches for which stochastic
depth draws. A checkpoint therefore holds the number, and a run that resumes with as many processes keeps it.
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
    """A recipe with a settled number of passes, and the reason for that number in words."""

    recipe: Recipe
    reason: str


class Kept(NamedTuple):
    """The passes of a checkpoint's run."""

    passes: int
    processes: int | None
    """None for a checkpoint of an earlier version, which does not say it."""


def settle_passes(recipe: Recipe, world: World, kept: Kept | None = None, teacher: Teacher | None = None) -> Passes:
    """The recipe with a number in run.accumulation. All processes call this together. The first rule that applies:

    1. the number in the recipe;
    2. `kept`, the number of the checkpoint from which the run resumes with as many processes;
    3. the smallest number that fits into every process's memory. On GPUs a step is tried, and the result is remembered
       for the machine, the model and the resolution. On CPUs, and for models sharded by FSDP, memory is calculated.

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
    """The recipe with this number of passes. Raises RecipeError where the number is impossible."""
    return recipe.derive(run={"accumulation": passes})


def possible_passes(recipe: Recipe, processes: int) -> list[int]:
    """The numbers of passes, in ascending order, by which the batch can be divided among `processes` processes.

    Raises RecipeError, about the smallest number, where there is none.
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
    """The smallest number of passes that at least halves the recipe's batch per pass; None where there is none."""
    bound = 2 * recipe.run.passes
    return next((each for each in possible_passes(recipe, processes) if each >= bound), None)


def tries_steps(recipe: Recipe, world: World) -> bool:
    """Whether steps are tried: not with FSDP, where a process that fails within a collective would block the others."""
    return world.device.type == "cuda" and (recipe.run.parallel == "ddp" or world.size == 1)


# ------------------------------------------------------------------------------------------------------- on a GPU
def _by_trial(recipe: Recipe, world: World, possible: Sequence[int], teacher: Teacher | None) -> tuple[int, str]:
    memory = PassMemory(recipe, world)
    with StepTrial(recipe, world, check_machine(recipe.run, world), teacher) as trial:
        found, tried = first_that_fits(recipe, world, possible, trial, memory)
        if found is None and not tried:  # other processes may have held the memory at that time
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
    """The first of the `possible` numbers that fits in every process, else None; and whether any was tried.

    attempt: called with a number of passes and the images of each; returns whether that fits in this process. All
    processes try the same number, and it fails if it fails in one of them. Sizes remembered from earlier trials are not
    tried again.
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
    """Results of earlier trials of a model on this machine: sizes of passes that fit, and sizes that do not."""

    def __init__(self, recipe: Recipe, world: World) -> None:
        self.path: Path = cache_folder() / "passes.json"
        self._key = _key(recipe, world)
        self._world, self._writes = world, world.rank == world.node_ranks[0]

    def recall(self, images: int) -> bool | None:
        """Whether a pass of `images` images fits; None if it is unknown."""
        fits, fails = self._read()
        return True if fits is not None and images <= fits else False if fails is not None and images >= fails else None

    def note(self, images: int, fits: bool) -> None:
        """Keeps the result of a trial, or of a run that ran out of memory; a later result replaces earlier ones."""
        most, least = self._read()
        if fits:
            most, least = max(images, most or 0), None if least is not None and least <= images else least
        else:
            most, least = None if most is not None and most >= images else most, min(images, least or images)
        if self._writes:
            remember(self.path, self._key, {"fits": most, "fails": least})

    def forget(self) -> None:
        """Forgets all results. All processes call this together."""
        if self._writes:
            remember(self.path, self._key, None)
        self._world.barrier()

    def _read(self) -> tuple[int | None, int | None]:
        found = read_remembered(self.path).get(self._key)
        found = found if isinstance(found, dict) else {}
        fits, fails = (each if type(each) is int and each > 0 else None for each in map(found.get, ("fits", "fails")))
        return fits, fails


def _key(recipe: Recipe, world: World) -> str:
    """The machine, the model with its resolution, and a digest of all else that affects a step's memory."""
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
    """The first possible number by calculation; the largest where none fits, as an estimate must not refuse a run."""
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
        if too_high(recipe, images) <= free:  # a cheap bound first: a trace takes a second
            return passes
        if step_memory(with_passes(recipe, passes), images, dtype, world.size, on_gpu).peak <= free:
            return passes
    return possible[-1]
