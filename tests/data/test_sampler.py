"""The order of training and evaluation: exact cover, pairs that stay together, and resume from any step."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deit_fast.data.loader.order import FullOrder
from deit_fast.data.loader.sampler import (
    Layout,
    TrainSampler,
    build_samplers,
    eval_indices,
    place_order,
    rank_positions,
    steps_per_epoch,
)
from deit_fast.recipe.sections import Data, Mix
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import DataError, RecipeError
from tests.oracles.repeated_sampler import deal_out


def epoch_order(num_images: int, epoch: int, seed: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and views of an epoch as every run up to now had them, from numpy's own shuffle: int64 [M] each."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, 0], np.uint64)
    counter = np.array([0, epoch, 0, 0], np.uint64)
    shuffled = np.random.RandomState(np.random.Philox(key=key, counter=counter)).permutation(num_images)
    views = num_images - num_images % 256 if repeats > 1 and num_images >= 256 else num_images
    return shuffled[np.arange(views) // repeats], np.arange(views) % repeats


layouts = st.sampled_from(["spread", "together"])
images = st.integers(1, 2000)
seeds = st.integers(-(2**40), 2**40)


def test_the_order_changes_with_epoch_and_seed_and_is_shuffled() -> None:
    orders = [FullOrder(4000, seed).images(epoch, 0, 0, 4000) for epoch in range(4) for seed in range(4)]
    correlation = np.corrcoef(np.array([np.arange(4000), *orders], np.float64))
    assert np.abs(correlation - np.eye(17)).max() < 5 / np.sqrt(4000)
    np.testing.assert_array_equal(FullOrder(4000, 3).images(3, 0, 0, 4000), orders[-1])


@pytest.mark.parametrize(
    ("num_images", "repeats", "global_batch", "steps"),
    [
        (1_281_167, 3, 2048, 625),
        (1_281_167, 1, 2048, 625),
        (1_281_167, 3, 512, 2502),
        (1437, 1, 128, 11),
        (200, 3, 64, 3),
    ],
)
def test_steps_of_the_published_recipes(num_images: int, repeats: int, global_batch: int, steps: int) -> None:
    assert steps_per_epoch(num_images, repeats, global_batch) == steps


@given(st.integers(1, 16), st.integers(1, 24))
def test_parts_cover_the_global_batch_exactly(parts: int, local: int) -> None:
    taken = [rank_positions(parts * local, parts, part) for part in range(parts)]
    assert {len(positions) for positions in taken} == {local}
    assert sorted(np.concatenate(taken).tolist()) == list(range(parts * local))


@given(st.integers(1, 16), st.integers(1, 12))
def test_reversing_a_part_pairs_the_same_images_as_reversing_the_whole(parts: int, pairs: int) -> None:
    global_batch = 2 * parts * pairs
    for part in range(parts):
        positions = rank_positions(global_batch, parts, part)
        assert (positions + positions[::-1] == global_batch - 1).all()


def test_one_part_is_the_whole_batch_in_order() -> None:
    assert rank_positions(8, 1, 0).tolist() == list(range(8))
    assert rank_positions(8, 2, 1).tolist() == [2, 3, 4, 5]


@given(st.integers(1, 300), st.integers(1, 40), layouts)
def test_a_step_holds_every_view_once(global_batch: int, half: int, layout: Layout) -> None:
    order = place_order(global_batch, 2 * half, layout)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(global_batch))
    if 2 * half >= global_batch:
        assert order.tolist() == list(range(global_batch))


def test_layouts_that_can_be_checked_by_hand() -> None:
    """Groups of four places, of which the first two and the last two are the first group's."""
    assert place_order(8, 4, "spread").tolist() == [0, 2, 1, 3, 5, 7, 4, 6]
    assert place_order(8, 4, "together").tolist() == [0, 1, 4, 5, 6, 7, 2, 3]
    assert place_order(10, 4, "spread").tolist() == [0, 3, 1, 4, 2, 5, 7, 9, 6, 8]
    assert place_order(7, 4, "spread").tolist() == [0, 2, 1, 3, 5, 4, 6]


@pytest.mark.parametrize(
    ("num_images", "repeats", "group", "groups"),
    [(3000, 3, 8, 16), (3000, 3, 16, 3), (2816, 1, 8, 4), (2600, 3, 32, 2), (2600, 5, 64, 1), (3001, 2, 6, 7)],
)
def test_spread_is_what_the_reference_deals_out_to_its_ranks(
    num_images: int, repeats: int, group: int, groups: int
) -> None:
    """A mixing group, in the order of mixing, is one reference rank's batch, however many processes there are here."""
    permutation = epoch_order(num_images, 1, 5, 1)[0].tolist()
    ranks = [deal_out(permutation, repeats, groups, rank) for rank in range(groups)]
    sampler = TrainSampler(FullOrder(num_images, 5), repeats, group * groups, layout="spread", group=group)
    for step in range(sampler.steps_per_epoch):
        batch = sampler.batch(sampler.steps_per_epoch + step)
        held = list(zip(batch.indices.tolist(), batch.views.tolist(), strict=True))
        for rank, expected in enumerate(ranks):
            pairs = range(rank * group // 2, (rank + 1) * group // 2)
            places = [*pairs, *(group * groups - 1 - pair for pair in reversed(pairs))]
            assert [held[place] for place in places] == expected[step * group : (step + 1) * group]
    assert sampler.steps_per_epoch == len(ranks[0]) // group


@pytest.mark.parametrize(
    ("world_size", "views"), [(1, 1_281_024), (8, 160_128), (16, 80_064), (32, 40_032), (64, 20_016)]
)
def test_an_epoch_of_imagenet(world_size: int, views: int) -> None:
    """What the reference's sampler gives to each rank; 427,008 images in all."""
    indices, which = epoch_order(1_281_167, 0, 0, 3)
    assert len(indices) == world_size * views
    assert len(np.unique(indices)) == 427_008
    assert np.bincount(which).tolist() == [427_008] * 3
    assert [len(deal_out(list(range(5000)), 3, ranks, 0)) for ranks in (1, 2, 8)] == [4864, 2432, 608]
    assert len(epoch_order(5000, 0, 0, 3)[0]) == 4864


@given(st.integers(3, 9), st.integers(1, 12), st.integers(2, 3), seeds)
@settings(max_examples=30, deadline=None)
def test_spread_gives_no_process_two_views_of_an_image(groups: int, half: int, repeats: int, seed: int) -> None:
    batch = groups * 2 * half
    for part in range(groups):
        sampler = TrainSampler(FullOrder(1000, seed), repeats, batch, groups, part, "spread", 2 * half)
        for step in (0, sampler.steps_per_epoch - 1, 2 * sampler.steps_per_epoch + 1):
            indices = sampler.batch(step).indices
            assert len(np.unique(indices)) == len(indices)


@pytest.mark.parametrize(
    ("parts", "group", "split"),
    [(2, 24, 0), (4, 24, 0), (8, 24, 0), (1, 32, 0), (3, 32, 2), (3, 64, 2), (6, 32, 5), (12, 32, 17)],
)
def test_together_keeps_the_views_of_an_image_in_one_process(parts: int, group: int, split: int) -> None:
    """`split`: edges between runs of different processes, each of which splits an image unless 3 divides the runs."""
    batches = [
        TrainSampler(FullOrder(2000, 0), 3, 192, parts, part, "together", group).batch(4) for part in range(parts)
    ]
    held = [set(batch.indices.tolist()) for batch in batches]
    distinct = set().union(*held)
    assert len(distinct) == 64
    assert sum(sum(image in images for images in held) > 1 for image in distinct) <= split
    if not split:
        assert all(len(images) * 3 == 192 // parts for images in held)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(64, 700),
    st.integers(1, 3),
    st.sampled_from([(8, 1), (12, 2), (24, 4), (9, 3), (64, 8)]),
    layouts,
    seeds,
)
def test_the_parts_together_read_every_epoch_in_its_order(
    num_images: int, repeats: int, batch: tuple[int, int], layout: Layout, seed: int
) -> None:
    global_batch, parts = batch
    order = FullOrder(num_images, seed)
    samplers = [TrainSampler(order, repeats, global_batch, parts, part, layout, 6) for part in range(parts)]
    whole = TrainSampler(order, repeats, global_batch, layout=layout, group=6)
    steps = samplers[0].steps_per_epoch
    for epoch in (0, 2):
        indices, views = epoch_order(num_images, epoch, seed, repeats)
        for step in range(steps):
            drawn = [sampler.batch(epoch * steps + step) for sampler in samplers]
            assert {part.epoch for part in drawn} == {epoch}
            place = np.argsort(np.concatenate([part.positions for part in drawn]))
            held = np.stack([np.concatenate([part.indices for part in drawn])[place],
                             np.concatenate([part.views for part in drawn])[place]], 1)  # fmt: skip
            alone = whole.batch(epoch * steps + step)
            np.testing.assert_array_equal(held, np.stack([alone.indices[np.argsort(alone.positions)],
                                                          alone.views[np.argsort(alone.positions)]], 1))  # fmt: skip
            window = slice(step * global_batch, (step + 1) * global_batch)
            expected = zip(indices[window].tolist(), views[window].tolist(), strict=True)
            assert sorted(map(tuple, held.tolist())) == sorted(expected)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=20), layouts, seeds)
def test_a_batch_is_the_same_whatever_was_asked_before(asked: list[int], layout: Layout, seed: int) -> None:
    uninterrupted = TrainSampler(FullOrder(300, seed), 3, 32, 2, 1, layout, 8)
    batches = [uninterrupted.batch(step) for step in range(61)]
    resumed = TrainSampler(FullOrder(300, seed), 3, 32, 2, 1, layout, 8)
    for step in asked:
        batch = resumed.batch(step)
        assert batch.epoch == batches[step].epoch == step // 8
        np.testing.assert_array_equal(batch.indices, batches[step].indices)
        np.testing.assert_array_equal(batch.views, batches[step].views)


@pytest.mark.parametrize("layout", ["spread", "together"])
def test_build_samplers_follows_the_recipe(layout: Layout) -> None:
    words = [f"data.layout={layout}", "mix.group=32", "run.global_batch=256", "run.accumulation=2", "data.repeats=3"]
    recipe = get_recipe("deit3_base_1k_192").override(words)
    for rank in range(2):
        for index, sampler in enumerate(build_samplers(recipe, FullOrder(3000, recipe.run.seed), rank, 2)):
            expected = TrainSampler(FullOrder(3000, recipe.run.seed), 3, 256, 4, 2 * rank + index, layout, 32)
            np.testing.assert_array_equal(sampler.batch(7).indices, expected.batch(7).indices)
            np.testing.assert_array_equal(sampler.batch(7).positions, expected.batch(7).positions)
    unset = TrainSampler(FullOrder(3000, 0), 3, 256).batch(0)
    defaults = TrainSampler(FullOrder(3000, 0), 3, 256, layout=Data().layout, group=Mix().group).batch(0)
    np.testing.assert_array_equal(unset.indices, defaults.indices)


@given(st.integers(0, 400), st.integers(1, 9), st.integers(1, 40))
def test_evaluation_takes_every_image_once_in_equally_many_batches(num_images: int, world: int, batch: int) -> None:
    ranks = [eval_indices(num_images, rank, world, batch) for rank in range(world)]
    taken = [index for rank in ranks for indices in rank for index in indices.tolist()]
    assert sorted(taken) == list(range(num_images))
    assert len({len(rank) for rank in ranks}) == 1
    for rank in ranks:
        assert all(len(indices) == batch for indices in rank[:-2])
        assert all(len(indices) <= batch for indices in rank)
    assert len(ranks[0]) == math.ceil(math.ceil(num_images / world) / batch)


def test_errors_name_the_numbers() -> None:
    with pytest.raises(DataError, match=r"^run\.global_batch=128: expected at most 100, the views .* of 100 images$"):
        TrainSampler(FullOrder(100, 0), 3, 128)
    with pytest.raises(DataError, match=r"^run\.global_batch=280: expected at most 256, the views .* of 300 images$"):
        TrainSampler(FullOrder(300, 0), 3, 280)
    with pytest.raises(RecipeError, match=r"^run\.global_batch=2048: expected a multiple of 6, world size x accum"):
        TrainSampler(FullOrder(5000, 0), 1, 2048, parts=6, part=0)
