"""Which image, which view and which place in the batch, at every step: index arithmetic without a state to save.

An `Order` maps the places of an epoch to images. This module assigns views, steps and places in the batch to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.loader.mixing import is_sorted
from deit_fast.data.loader.order import BlockOrder, FullOrder, Order
from deit_fast.data.sources.base import Source
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import DataError, RecipeError

Layout = Literal["spread", "together"]
_REPEATED_MULTIPLE = 256


@dataclass(frozen=True)
class StepIndices:
    """One part of a global batch; all arrays are int64 [global_batch / parts]."""

    epoch: int
    """Epoch, counted from 0."""
    indices: NDArray[np.int64]
    """Indices of the source's images."""
    views: NDArray[np.int64]
    """The number of each view among the image's repeated views, 0 to repeats - 1."""
    positions: NDArray[np.int64]
    """Places in the global batch."""


def epoch_views(num_images: int, repeats: int) -> int:
    """Number of views in an epoch of num_images. It is about num_images, also with repeats.

    With repeats, an epoch therefore shows about num_images / repeats images, each `repeats` times. From 256 images on,
    the number of views is then rounded down to a multiple of 256, as in the reference's RASampler.
    """
    if repeats == 1 or num_images < _REPEATED_MULTIPLE:
        return num_images
    return num_images // _REPEATED_MULTIPLE * _REPEATED_MULTIPLE


def steps_per_epoch(num_images: int, repeats: int, global_batch: int) -> int:
    """Number of whole global batches, of `global_batch` views each, in an epoch; remaining views are dropped."""
    return epoch_views(num_images, repeats) // global_batch


def place_order(global_batch: int, group: int, layout: Layout, lanes: int = 1) -> NDArray[np.int64]:
    """The view at each place of the global batch: a permutation of a step's views, int64 [global_batch].

    Mixup and CutMix mix images within a mixing group of `group` places. A group consists of a block of consecutive
    places and the mirror image of that block in the batch (see draw_mix). If `group` does not divide the batch, the
    last group is smaller. Within a group, the block's places are numbered first, then the mirrored places.

    layout "spread" deals the views out to the groups in turn, like cards. With G equal groups, group number g then
    holds the views that rank g of G has in the reference's RASampler. If G >= repeats, no group has two views of one
    image.

    layout "together" gives each group a run of consecutive views. A process whose batch is a multiple of `group` then
    holds one run; a process whose batch divides `group` holds two runs. Only the images at the two ends of a run can
    have views in another process or step. If repeats divides this run and all views before it, no image does.

    lanes: of the order. Each lane gives the same number of views to a step, numbered lane after lane. A lane fills
    consecutive mixing groups, as if it were a batch of its own, so that a node that has these groups needs no other
    lane.
    """
    if lanes > 1:
        share = global_batch // lanes
        order = np.empty(global_batch, np.int64)
        for lane in range(lanes):
            order[rank_positions(global_batch, lanes, lane)] = lane * share + place_order(share, group, layout)
        return order
    places = np.arange(global_batch)
    pairs = np.minimum(places, places[::-1])
    groups, members = np.divmod(pairs, group // 2)
    members = np.where(places == pairs, members, np.bincount(groups)[groups] - 1 - members)
    keys = (groups, members) if layout == "spread" else (members, groups)  # the last key is the primary one
    order = np.empty(global_batch, np.int64)
    order[np.lexsort(keys)] = places
    return order


def rank_positions(global_batch: int, parts: int, part: int) -> NDArray[np.int64]:
    """The places of one part in the global batch, int64 [global_batch / parts].

    The batch is folded: a part takes a block and the block's mirror image. Reversing the part's own batch therefore
    pairs the same images as reversing the global batch, and mixing needs no other process. A part with an odd number of
    places cannot be folded and takes a plain block; the recipe refuses mixing then. Raises RecipeError where the batch
    cannot be divided.
    """
    if global_batch % parts:
        raise RecipeError(f"run.global_batch={global_batch}: expected a multiple of {parts}, world size x accumulation")
    local = global_batch // parts
    if local % 2:
        return np.arange(part * local, (part + 1) * local)
    block = np.arange(part * local // 2, (part + 1) * local // 2)
    return np.concatenate((block, global_batch - 1 - block[::-1]))


class TrainSampler:
    """The training batches of one part of the run; part = rank * accumulation + pass, of world size * passes parts.

    At every step all parts together hold global_batch / lanes consecutive views of each lane of the order, whatever the
    number of parts. `layout` and the size `group` of a mixing group decide at which place of the batch each view stands
    (place_order). node_parts: the parts of all processes of this machine, which share fetched shards; by default this
    part alone. Raises RecipeError where the batch cannot be divided, DataError where an epoch has no whole batch.
    """

    def __init__(
        self,
        order: Order,
        repeats: int,
        global_batch: int,
        parts: int = 1,
        part: int = 0,
        layout: Layout = "spread",
        group: int = 256,
        node_parts: Sequence[int] = (),
    ) -> None:
        self.order, self.repeats = order, repeats
        self.steps_per_epoch = steps_per_epoch(order.length, repeats, global_batch)
        self.lane_views = global_batch // order.lanes
        """Number of views that each lane gives to a step."""
        self._positions = rank_positions(global_batch, parts, part)
        views = place_order(global_batch, group, layout, order.lanes)
        self._lanes = _by_lane(views[self._positions], self.lane_views)
        if not self.steps_per_epoch:
            raise DataError(
                f"run.global_batch={global_batch}: expected at most {epoch_views(order.length, repeats)}, "
                f"the views in an epoch of {order.length} images"
            )
        places = np.concatenate([rank_positions(global_batch, parts, each) for each in node_parts or [part]])
        self.node_lanes = sorted(_by_lane(views[places], self.lane_views))
        """Lanes that this machine's processes read."""

    def __len__(self) -> int:
        """Number of views in a batch of this part."""
        return len(self._positions)

    def batch(self, step: int) -> StepIndices:
        """This part's images at `step`, counted from the start of the run; independent of earlier calls."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        indices, views = np.empty((2, len(self._positions)), np.int64)
        for lane, (held, offsets) in self._lanes.items():
            images, views[held] = np.divmod(step_in_epoch * self.lane_views + offsets, self.repeats)
            first = int(images.min())
            indices[held] = self.order.images(epoch, lane, first, int(images.max()) + 1)[images - first]
        return StepIndices(epoch, indices, views, self._positions)


def _by_lane(views: NDArray[np.int64], lane_views: int) -> dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For each lane: the places of its views among these views of a step, and their numbers in the lane's step."""
    lanes, offsets = np.divmod(views, lane_views)
    return {lane: (held := np.flatnonzero(lanes == lane), offsets[held]) for lane in np.unique(lanes).tolist()}


def build_order(recipe: Recipe, source: Source) -> Order:
    """The order of the recipe's epochs over a source.

    Raises RecipeError where data.block is impossible: the data are not in shards, or the shards are sorted by class.
    """
    data, seed, edges = recipe.data, recipe.run.seed_of("order"), source.shard_edges
    if not data.block:
        return FullOrder(len(source), seed, edges)
    if edges is None:
        raise RecipeError(
            f"data.block={data.block}: expected data in shards, {source.uri} is in none; 0 shuffles all images, and "
            "deit-fast data shard writes shards"
        )
    if is_sorted(source.labels, edges):
        raise RecipeError(
            f"data.block={data.block}: expected shards of shuffled images, those of {source.uri} are sorted by class; "
            "deit-fast data shard writes shuffled ones, and data.block=0 shuffles all images"
        )
    return BlockOrder(edges, seed, data.block, data.lanes)


def build_samplers(
    recipe: Recipe, order: Order, rank: int, world_size: int, node: range | None = None
) -> list[TrainSampler]:
    """One sampler for each accumulation pass of a process; node: the ranks of its machine, by default this rank alone.

    Raises RecipeError for a batch that cannot be divided, DataError where an epoch has no whole batch.
    """
    passes, batch = recipe.run.passes, recipe.run.global_batch
    recipe.check_processes(world_size)
    parts = world_size * passes
    node = node or range(rank, rank + 1)
    node_parts = range(node.start * passes, node.stop * passes)
    data, group = recipe.data, recipe.mix.group
    return [
        TrainSampler(order, data.repeats, batch, parts, rank * passes + index, data.layout, group, node_parts)
        for index in range(passes)
    ]


def eval_indices(num_images: int, rank: int, world_size: int, batch: int) -> list[NDArray[np.int64]]:
    """One rank's evaluation batches, int64 [batch or less] each; over all ranks, every image occurs exactly once.

    Every rank has the same number of batches, because a sharded model's forward is a collective. The last batch may be
    short, or empty if other ranks have one image more.
    """
    start, stop = (num_images * edge // world_size for edge in (rank, rank + 1))
    most = -(-num_images // world_size)
    return [np.arange(min(first, stop), min(first + batch, stop)) for first in range(start, start + most, batch)]
