"""Which image, which view and which place in the batch, at every step: pure index arithmetic, with no state to save."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import DataError, RecipeError
from deit_fast.runtime.philox import Stream, generator

Layout = Literal["spread", "together"]
_REPEATED_MULTIPLE = 256


@dataclass(frozen=True)
class StepIndices:
    """What one part of a global batch holds; all arrays are int64 [global_batch / parts]."""

    epoch: int
    """Counted from 0."""
    indices: NDArray[np.int64]
    """Images, as indices of the source."""
    views: NDArray[np.int64]
    """Which of the image's repeated views, 0 to repeats - 1."""
    positions: NDArray[np.int64]
    """Places in the global batch."""


def epoch_order(num_images: int, epoch: int, seed: int, repeats: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Images and views of one epoch, int64 [M] each: a shuffle by (seed, epoch), every image `repeats` times in a row.

    An epoch with repeats is as long as one without: about N views, of about N / repeats images. M is then N rounded
    down to a multiple of 256, the reference's RASampler; below 256 images M is N, where the reference has none.
    """
    return _views_at(np.arange(epoch_views(num_images, repeats)), _shuffle(num_images, epoch, seed), repeats)


def epoch_views(num_images: int, repeats: int) -> int:
    """Views in an epoch: num_images, rounded down to a multiple of 256 with repeats (the reference's RASampler)."""
    if repeats == 1 or num_images < _REPEATED_MULTIPLE:
        return num_images
    return num_images // _REPEATED_MULTIPLE * _REPEATED_MULTIPLE


def steps_per_epoch(num_images: int, repeats: int, global_batch: int) -> int:
    """Whole global batches, of `global_batch` views each, in an epoch; the rest is dropped."""
    return epoch_views(num_images, repeats) // global_batch


def place_order(global_batch: int, group: int, layout: Layout) -> NDArray[np.int64]:
    """Which of a step's views is at each place of the global batch: a permutation, int64 [global_batch].

    A mixing group of `group` places consists of a block of the batch and the block's mirror image (draw_mix), numbered
    in that order; the last group has what is left. "spread" deals the views out to the groups like cards. Of G equal
    groups number g then holds what rank g of G has in the reference's RASampler, and no group has two views of an image
    where G >= repeats.

    "together" gives each group a run of consecutive views. A process whose batch is a multiple of `group` then holds
    one run, and one whose batch divides `group` holds two. Only the images at the ends of a run, 2 at most, have views
    in another process or step. There are none of these where repeats divides the runs and the steps before.
    """
    places = np.arange(global_batch)
    pairs = np.minimum(places, places[::-1])
    groups, members = np.divmod(pairs, group // 2)
    members = np.where(places == pairs, members, np.bincount(groups)[groups] - 1 - members)
    keys = (groups, members) if layout == "spread" else (members, groups)  # the last key is the first to sort by
    order = np.empty(global_batch, np.int64)
    order[np.lexsort(keys)] = places
    return order


def rank_positions(global_batch: int, parts: int, part: int) -> NDArray[np.int64]:
    """Places of one part in the global batch, int64 [global_batch / parts].

    The batch is folded: a part takes a block and the block's mirror image, so that reversing the part's own batch pairs
    the same images as reversing the global batch, and mixing needs no other process. An odd part cannot be folded (the
    recipe refuses mixing then) and takes a plain block. Raises RecipeError where the batch cannot be divided.
    """
    if global_batch % parts:
        raise RecipeError(f"run.global_batch={global_batch}: expected a multiple of {parts}, world size x accumulation")
    local = global_batch // parts
    if local % 2:
        return np.arange(part * local, (part + 1) * local)
    block = np.arange(part * local // 2, (part + 1) * local // 2)
    return np.concatenate((block, global_batch - 1 - block[::-1]))


class TrainSampler:
    """The training batches of one part of the run; part = rank * accumulation + pass of world size * accumulation.

    All parts together hold global_batch consecutive views of the epoch's order at every step, whatever their number;
    `layout` and the size of a mixing `group` say which of them is where (place_order).
    Raises RecipeError where the batch cannot be divided, DataError where an epoch has no whole batch.
    """

    def __init__(
        self,
        num_images: int,
        repeats: int,
        global_batch: int,
        seed: int,
        parts: int = 1,
        part: int = 0,
        layout: Layout = "spread",
        group: int = 256,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(num_images, repeats, global_batch)
        self._positions = rank_positions(global_batch, parts, part)
        self._order = place_order(global_batch, group, layout)[self._positions]
        if not self.steps_per_epoch:
            raise DataError(
                f"run.global_batch={global_batch}: expected at most {epoch_views(num_images, repeats)}, "
                f"the views in an epoch of {num_images} images"
            )
        self._num_images, self._repeats, self._global_batch, self._seed = num_images, repeats, global_batch, seed
        self._cached: tuple[int, NDArray[np.int64]] | None = None

    def batch(self, step: int) -> StepIndices:
        """What this part holds at `step`, counted from the start of the run: the same whatever was asked before."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        cached = self._cached
        if cached is None or cached[0] != epoch:
            cached = self._cached = epoch, _shuffle(self._num_images, epoch, self._seed)
        order = step_in_epoch * self._global_batch + self._order
        return StepIndices(epoch, *_views_at(order, cached[1], self._repeats), self._positions)


def build_samplers(recipe: Recipe, num_images: int, rank: int, world_size: int) -> list[TrainSampler]:
    """One sampler for each accumulation pass of a process. Raises RecipeError for a batch that cannot be divided."""
    passes, batch = recipe.run.accumulation, recipe.run.global_batch
    recipe.check_processes(world_size)
    parts = world_size * passes
    data, group, seed = recipe.data, recipe.mix.group, recipe.run.seed_of("order")
    return [
        TrainSampler(num_images, data.repeats, batch, seed, parts, rank * passes + index, data.layout, group)
        for index in range(passes)
    ]


def eval_indices(num_images: int, rank: int, world_size: int, batch: int) -> list[NDArray[np.int64]]:
    """One rank's evaluation batches, int64 [batch or less] each; over all ranks every image comes exactly once.

    Every rank gets the same number of batches, because a sharded model's forward is a collective: the last may be
    short, and empty where other ranks have one image more.
    """
    start, stop = (num_images * edge // world_size for edge in (rank, rank + 1))
    most = -(-num_images // world_size)
    return [np.arange(min(first, stop), min(first + batch, stop)) for first in range(start, start + most, batch)]


def _shuffle(num_images: int, epoch: int, seed: int) -> NDArray[np.int64]:
    return generator(seed, Stream.ORDER, epoch).permutation(num_images)


def _views_at(
    order: NDArray[np.int64], shuffled: NDArray[np.int64], repeats: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return shuffled[order // repeats], order % repeats
