"""The batch size of a run with fewer images than the recipe's: own images, or a part of a data set."""

from typing import NamedTuple

from deit_fast.data.loader.sampler import epoch_views
from deit_fast.recipe.schema import Recipe


class Began(NamedTuple):
    """The start of a checkpoint's run, which decided its batch size."""

    batch: int
    images: int
    """Number of training images."""
    processes: int


def fit_batch(recipe: Recipe, images: int, processes: int, began: Began | None = None) -> tuple[Recipe, list[str]]:
    """The recipe with the largest global batch that an epoch of `images` images can fill; a line if it changed.

    The batch has to be divisible among the processes and passes, like the recipe's own batch. If no such batch exists,
    the recipe is unchanged and the sampler refuses it. began: of a run that resumes. If its batch was fitted in this
    way, the batch stays while an epoch can fill it, although there are other images or processes now.
    """
    run, views = recipe.run, _views(recipe, images)
    batch = _fitting(recipe, views, processes)
    if began is not None and began.batch not in (batch, run.global_batch):
        fitted = _fitting(recipe, _views(recipe, began.images), began.processes)
        if began.batch == fitted <= views:
            kept = recipe.derive(run={"global_batch": fitted})
            return kept, [f"run.global_batch={fitted} stays, which the run began with"]
    if batch == run.global_batch:
        return recipe, []
    line = (
        f"run.global_batch={run.global_batch} is more than the {views} views of an epoch: {batch} instead; "
        f"optim.lr={recipe.optim.lr:g} stays"
    )
    return recipe.derive(run={"global_batch": batch}), [line]


def _views(recipe: Recipe, images: int) -> int:
    return epoch_views(images // recipe.data.lanes * recipe.data.lanes, recipe.data.repeats)


def _fitting(recipe: Recipe, views: int, processes: int) -> int:
    """The recipe's batch, or the largest one that `views` views can fill."""
    run = recipe.run
    unit = processes * run.passes * (2 if recipe.mix.active else 1)
    if recipe.data.lanes > 1:
        unit *= recipe.mix.group * recipe.data.lanes
    return run.global_batch if views >= run.global_batch else views // unit * unit or run.global_batch
