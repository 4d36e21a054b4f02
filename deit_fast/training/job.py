"""`Job`: the inputs of one process of a run, and the facts that follow from them before anything is built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from deit_fast.checkpoint.store import RunStore
from deit_fast.data.loader.sampler import TrainSampler, build_order, build_samplers
from deit_fast.data.loader.streaming_plan import check_disk
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.identity import Identity
from deit_fast.data.sources.splits import Split
from deit_fast.models.build import check_drop_path
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import RecipeError
from deit_fast.runtime.world import World
from deit_fast.training.prepare import check_machine
from deit_fast.training.same_data import agree_on_data
from deit_fast.training.schedule import total_steps


@dataclass(frozen=True)
class Job:
    """Everything that is constant from a run's first step to its last."""

    recipe: Recipe
    source: Source
    val_source: Source | None
    """Validation images; None means that the run does not evaluate."""
    out: Path
    """The run folder."""
    world: World
    store: RunStore | None
    """The object store to which the run folder is copied; None for no copy."""
    identities: Mapping[Split, Identity]
    """Identities of the training and validation images, for checkpoints."""
    samplers: Sequence[TrainSampler]
    """One sampler for each gradient-accumulation pass of this process."""
    dtype: torch.dtype
    """Type of the forward pass."""
    steps_per_epoch: int
    """Optimizer steps per epoch."""
    total_steps: int
    """Optimizer steps of the whole run."""
    asked: Recipe
    """The recipe as the user gave it, which recipe.json keeps: its run.accumulation may be "auto"."""


def plan_job(
    recipe: Recipe, source: Source, val_source: Source | None, out: Path, world: World, store: RunStore | None = None,
    asked: Recipe | None = None,
) -> Job:  # fmt: skip
    """The job of this process: samplers, type and numbers of steps. All processes call this together.

    asked: the recipe before its number of passes was settled, if it differs.

    Raises DataError, in every process, where the processes have different data. Raises RecipeError for a batch that
    these processes cannot divide, for an order that the data do not allow, and for hardware that this machine lacks.
    """
    identities = agree_on_data(source, val_source, world)
    samplers = build_samplers(recipe, build_order(recipe, source), world.rank, world.size, world.node_ranks)
    agree_on_disk(recipe, source, samplers[0].node_lanes, world)
    check_drop_path(recipe.model, recipe.pass_size(world.size))
    dtype = check_machine(recipe.run, world)
    steps_per_epoch = samplers[0].steps_per_epoch
    total = total_steps(recipe.schedule, steps_per_epoch)
    return Job(
        recipe, source, val_source, out, world, store, identities, samplers, dtype, steps_per_epoch, total,
        recipe if asked is None else asked,
    )  # fmt: skip


def agree_on_disk(recipe: Recipe, source: Source, node_lanes: Sequence[int], world: World) -> None:
    """Sets how much of the disk fetched shards may take. Raises RecipeError, in every process, where one lacks room."""
    failure = ""
    try:
        check_disk(recipe.data, source, node_lanes)
    except RecipeError as error:
        failure = str(error)
    if failure := next(filter(None, world.gather(failure)), ""):
        raise RecipeError(failure)
