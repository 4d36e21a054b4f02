"""The order of training and evaluation: exact cover, pairs that stay together, and resume from any step."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deit_fast.data.sampler import TrainSampler, epoch_order, eval_indices, rank_positions, steps_per_epoch
from deit_fast.errors import DataError, RecipeError

images = st.integers(1, 2000)
seeds = st.integers(-(2**40), 2**40)


@given(images, st.integers(0, 500), seeds)
def test_an_epoch_without_repeats_is_a_permutation(num_images: int, epoch: int, seed: int) -> None:
    indices, views = epoch_order(num_images, epoch, seed, repeats=1)
    assert sorted(indices.tolist()) == list(range(num_images))
    assert not views.any()
    assert indices.dtype == views.dtype == np.int64


@given(images, st.integers(1, 5), seeds)
def test_repeats_follow_each_other_and_keep_the_epochs_length(num_images: int, repeats: int, seed: int) -> None:
    plain, _ = epoch_order(num_images, 0, seed, repeats=1)
    indices, views = epoch_order(num_images, 0, seed, repeats)
    repeated = [(image, view) for image in plain.tolist() for view in range(repeats)]
    length = num_images if repeats == 1 or num_images < 256 else num_images - num_images % 256
    assert list(zip(indices.tolist(), views.tolist(), strict=True)) == repeated[:length]


def test_the_order_changes_with_epoch_and_seed_and_is_shuffled() -> None:
    orders = [epoch_order(4000, epoch, seed, 1)[0] for epoch in range(4) for seed in range(4)]
    correlation = np.corrcoef(np.array([np.arange(4000), *orders], np.float64))
    assert np.abs(correlation - np.eye(17)).max() < 5 / np.sqrt(4000)
    np.testing.assert_array_equal(epoch_order(4000, 3, 3, 1)[0], orders[-1])


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


@settings(max_examples=40, deadline=None)
@given(st.integers(64, 700), st.integers(1, 3), st.sampled_from([(8, 1), (12, 2), (24, 4), (9, 3), (64, 8)]), seeds)
def test_the_parts_together_read_every_epoch_in_its_order(
    num_images: int, repeats: int, batch: tuple[int, int], seed: int
) -> None:
    global_batch, parts = batch
    samplers = [TrainSampler(num_images, repeats, global_batch, seed, parts, part) for part in range(parts)]
    steps = samplers[0].steps_per_epoch
    for epoch in (0, 2):
        indices, views = epoch_order(num_images, epoch, seed, repeats)
        for step in range(steps):
            drawn = [sampler.batch(epoch * steps + step) for sampler in samplers]
            assert {part.epoch for part in drawn} == {epoch}
            place = np.argsort(np.concatenate([part.positions for part in drawn]))
            window = slice(step * global_batch, (step + 1) * global_batch)
            np.testing.assert_array_equal(np.concatenate([part.indices for part in drawn])[place], indices[window])
            np.testing.assert_array_equal(np.concatenate([part.views for part in drawn])[place], views[window])


@given(st.lists(st.integers(0, 60), min_size=1, max_size=20), seeds)
def test_a_batch_is_the_same_whatever_was_asked_before(asked: list[int], seed: int) -> None:
    uninterrupted = TrainSampler(300, 3, 32, seed, 2, 1)
    batches = [uninterrupted.batch(step) for step in range(61)]
    resumed = TrainSampler(300, 3, 32, seed, 2, 1)
    for step in asked:
        batch = resumed.batch(step)
        assert batch.epoch == batches[step].epoch == step // 8
        np.testing.assert_array_equal(batch.indices, batches[step].indices)
        np.testing.assert_array_equal(batch.views, batches[step].views)


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
        TrainSampler(100, 3, 128, 0)
    with pytest.raises(DataError, match=r"^run\.global_batch=280: expected at most 256, the views .* of 300 images$"):
        TrainSampler(300, 3, 280, 0)
    with pytest.raises(RecipeError, match=r"^run\.global_batch=2048: expected a multiple of 6, world size x accum"):
        TrainSampler(5000, 1, 2048, 0, parts=6, part=0)
