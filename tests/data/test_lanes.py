"""Lanes in a batch: who holds which, whatever the number of processes, and what a batch is made of."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deit_fast.data.loader.order import BlockOrder
from deit_fast.data.loader.sampler import Layout, TrainSampler, build_samplers, place_order
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError

EDGES = np.concatenate([[0], np.cumsum(np.random.default_rng(1).integers(20, 60, 40))])
GROUP, BATCH = 4, 64  # 16 mixing groups


def view_at_place(samplers: list[TrainSampler], step: int) -> list[tuple[int, int]]:
    """Image and view at each place of the global batch."""
    parts = [sampler.batch(step) for sampler in samplers]
    places = np.concatenate([part.positions for part in parts])
    assert sorted(places.tolist()) == list(range(BATCH))
    indices, views = (np.concatenate([getattr(part, key) for part in parts]) for key in ("indices", "views"))
    back = np.argsort(places)
    return list(zip(indices[back].tolist(), views[back].tolist(), strict=True))


def groups_of(places: list[int]) -> list[set[int]]:
    """The mixing groups: half a group's places from the batch's start on, and their mirror images."""
    half = GROUP // 2
    return [{*places[first : first + half], *(places[BATCH - 1 - each] for each in range(first, first + half))}
            for first in range(0, BATCH // 2, half)]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 3), st.sampled_from(["spread", "together"]), st.data())
def test_every_world_size_has_the_same_batches_also_changed_midway(
    lanes: int, repeats: int, layout: Layout, data: st.DataObject
) -> None:
    def samplers(world: int) -> list[TrainSampler]:
        # Each has an order of its own, as in a process of its own.
        return [TrainSampler(BlockOrder(EDGES, 5, 4, lanes), repeats, BATCH, world, part, layout, GROUP)
                for part in range(world)]  # fmt: skip

    alone = samplers(1)
    order, steps = alone[0].order, alone[0].steps_per_epoch
    length = order.length // lanes
    worlds: Iterator[int] = iter([1, 2, 4, 8, 2, 16, 1])
    for step in sorted(data.draw(st.lists(st.integers(0, 3 * steps), min_size=1, max_size=7))):
        world = next(worlds)
        held = view_at_place(samplers(world), step)
        assert held == view_at_place(alone, step)
        epoch, number = divmod(step, steps)
        share = BATCH // lanes
        wanted = []
        for lane in range(lanes):
            images = order.images(epoch, lane, 0, length).tolist()
            views = range(number * share, (number + 1) * share)
            wanted.append({(images[view // repeats], view % repeats) for view in views})
        assert sorted(held) == sorted(set().union(*wanted))
        for group, places in enumerate(groups_of(list(range(BATCH)))):  # a lane's groups hold its views alone
            assert {held[place] for place in places} <= wanted[group * lanes // (BATCH // GROUP)]


@given(st.sampled_from([2, 4, 8]), st.sampled_from([1, 2]))
def test_a_node_of_one_of_l_shares_holds_whole_lanes(lanes: int, passes: int) -> None:
    words = [f"data.lanes={lanes}", "data.block=4", f"mix.group={GROUP}", f"run.global_batch={BATCH}"]
    recipe = get_recipe("demo_pretrain", [*words, f"run.accumulation={passes}"])
    order = BlockOrder(EDGES, 0, 4, lanes)
    for per_node in (1, 2):
        world = lanes * per_node
        for rank in range(world):
            node = range(rank - rank % per_node, rank - rank % per_node + per_node)
            for sampler in build_samplers(recipe, order, rank, world, node):
                assert sampler.node_lanes == [node.start // per_node]
    whole = build_samplers(recipe, order, 0, 1)
    assert all(sampler.node_lanes == list(range(lanes)) for sampler in whole)


def test_spread_keeps_the_views_of_an_image_apart_in_lanes_too() -> None:
    sampler = TrainSampler(BlockOrder(EDGES, 0, 4, 4), 3, BATCH, group=GROUP)  # 4 groups a lane, 3 views
    for step in (0, 5, 2 * sampler.steps_per_epoch - 1):
        indices = sampler.batch(step).indices
        for places in groups_of(list(range(BATCH))):
            assert len({indices[place] for place in places}) == GROUP


def test_lanes_that_can_be_checked_by_hand() -> None:
    """Groups of four places; the first lane's are 0, 1, 2, 3 and their mirror images 12 to 15."""
    assert place_order(16, 4, "together", 2).tolist() == [0, 1, 4, 5, 8, 9, 12, 13, 14, 15, 10, 11, 6, 7, 2, 3]
    assert place_order(16, 4, "spread", 2).tolist() == [0, 2, 1, 3, 8, 10, 9, 11, 13, 15, 12, 14, 5, 7, 4, 6]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data.lanes=2"], "data.lanes=2: expected 1 with data.block=0, which shuffles the images of all shards"),
        (["data.block=8", "data.lanes=3"],
         "data.lanes=3: expected a divisor of the mixing groups of a batch, run.global_batch=2048 / mix.group=256, "
         "which are 8"),
        (["data.block=8", "data.lanes=2", "mix.group=4096"],
         "data.lanes=2: expected a divisor of the mixing groups of a batch, run.global_batch=2048 / mix.group=4096, "
         "which are 0.5"),
        (["data.block=-1"], "data.block=-1: expected"),
        (["data.lanes=0"], "data.lanes=0: expected"),
        (["data.block=1.5"], "data.block=1.5: expected"),
        (["data.cache_limit=0"], "data.cache_limit=0: expected"),
        (["data.cache_limit=-3"], "data.cache_limit=-3: expected"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(words: list[str], line: str) -> None:
    with pytest.raises(RecipeError) as refused:
        get_recipe("deit3_small_1k_224", ["run.global_batch=2048", *words])
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


def test_eight_lanes_of_the_published_batch_are_taken() -> None:
    recipe = get_recipe("deit3_small_1k_224", ["data.block=64", "data.lanes=8", "data.cache_limit=100"])
    assert (recipe.data.block, recipe.data.lanes, recipe.data.cache_limit) == (64, 8, 100)
