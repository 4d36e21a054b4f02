"""The batch size of a run with fewer images than the recipe's: own images, or a part of a data set."""

from deit_fast.data.loader.sampler import epoch_views
from deit_fast.recipe.schema import Recipe


def fit_batch(recipe: Recipe, images: int, processes: int) -> tuple[Recipe, list[str]]:
    """The recipe with the largest global batch that an epoch of `images` images can fill; a line if it changed.

    The batch has to be divisible among the processes and passes, like the recipe's own batch. If no such batch exists,
    the recipe is unchanged and the sampler refuses it.
    """
    run, views = recipe.run, epoch_views(images // recipe.data.lanes * recipe.data.lanes, recipe.data.repeats)
    if views >= run.global_batch:
        return recipe, []
    unit = processes * run.passes * (2 if recipe.mix.active else 1)
    if recipe.data.lanes > 1:
        unit *= recipe.mix.group * recipe.data.lanes
    batch = views // unit * unit
    if not batch:
        return recipe, []
    line = (
        f"run.global_batch={run.global_batch} is more than the {views} views of an epoch: {batch} instead; "
        f"optim.lr={recipe.optim.lr:g} stays"
    )
    return recipe.derive(run={"global_batch": batch}), [line]
