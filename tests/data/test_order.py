"""The orders of an epoch: exact cover, blocks of whole shards, lanes, any span at once, and the draws as they are."""

import hashlib
import time
import tracemalloc
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deit_fast.data.loader.order import BlockOrder, FullOrder, Order, StoredOrder
from deit_fast.data.loader.sampler import TrainSampler

# An empty shard, one of a single image, and more lanes or blocks than shards are among these.
counts = st.lists(st.integers(0, 25), min_size=1, max_size=30).filter(any)


def edges_of(sizes: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


def shard_of(edges: np.ndarray, image: int) -> int:
    return next(shard for shard in range(len(edges) - 1) if edges[shard] <= image < edges[shard + 1])


def firsts(values: list[int]) -> list[int]:
    return list(dict.fromkeys(values))


def numpy_shuffle(seed: int, words: tuple[int, ...], values: list[int]) -> list[int]:
    """numpy's legacy shuffle by its own Philox: key (seed, order), counter from its second word on."""
    counter = np.zeros(4, np.uint64)
    counter[1 : 1 + len(words)] = words
    bits = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=counter)
    shuffled = np.array(values, np.int64)
    np.random.RandomState(bits).shuffle(shuffled)
    return shuffled.tolist()


def plain_lanes(sizes: list[int], seed: int, epoch: int, block: int, lanes: int) -> list[list[list[int]]]:
    """The block order told image by image: a lane's blocks of images, for each lane."""
    edges = edges_of(sizes)
    order = numpy_shuffle(seed, (epoch,), [shard for shard, size in enumerate(sizes) if size])
    sequence = [(shard, image) for shard in order for image in range(edges[shard], edges[shard + 1])]
    length = len(sequence) // lanes
    found = []
    for lane in range(lanes):
        held = sequence[lane * length : (lane + 1) * length]
        shards = firsts([shard for shard, _ in held])
        number = max(1, len(shards) // block)
        blocks = []
        for each in range(number if held else 0):
            chosen = shards[each * len(shards) // number : (each + 1) * len(shards) // number]
            images = [image for shard, image in held if shard in chosen]
            blocks.append(numpy_shuffle(seed, (epoch, lane, each + 1), images))
        found.append(blocks)
    return found


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(1, 12), st.integers(1, 6), st.integers(0, 300), st.integers(0, 2**32 - 1), st.data())
def test_a_block_order_shuffles_shards_then_the_images_of_blocks(
    sizes: list[int], block: int, lanes: int, epoch: int, seed: int, data: st.DataObject
) -> None:
    edges = edges_of(sizes)
    order, length = BlockOrder(edges, seed, block, lanes), sum(sizes) // lanes
    assert order.length == length * lanes
    expected = plain_lanes(sizes, seed, epoch, block, lanes)
    whole = [order.images(epoch, lane, 0, length) for lane in range(lanes)]
    assert {each.dtype for each in whole} == {np.dtype(np.int64)}
    assert [each.tolist() for each in whole] == [[*chain(*blocks)] for blocks in expected]
    used = np.concatenate(whole).tolist()
    assert len(set(used)) == len(used) > sum(sizes) - lanes  # each once, all but fewer than the lanes
    if not length:
        return
    lane = data.draw(st.integers(0, lanes - 1))
    start, stop = sorted(data.draw(st.tuples(st.integers(0, length), st.integers(0, length))))
    fresh = BlockOrder(edges, seed, block, lanes)
    assert fresh.images(epoch, lane, start, stop).tolist() == whole[lane][start:stop].tolist()
    needed = firsts([shard_of(edges, image) for image in whole[lane][start:stop].tolist()])
    assert fresh.shards(epoch, lane, start, stop).tolist() == needed
    blocks = [{shard_of(edges, image) for image in images} for images in expected[lane]]
    assert sum(map(len, blocks)) == len(set().union(*blocks))  # every shard in one block of the lane
    assert len(blocks) == 1 or min(map(len, blocks)) >= block
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
    assert np.diff(order.block_edges(epoch, lane)).tolist() == [len(images) for images in expected[lane]]
    assert [set(order.block_shards(epoch, lane, each).tolist()) for each in range(len(blocks))] == blocks


@settings(max_examples=40, deadline=None)
@given(counts, st.integers(1, 6), st.integers(1, 4), st.booleans(), st.data())
def test_the_next_use_of_a_shard_is_the_next_block_that_holds_it(
    sizes: list[int], block: int, lanes: int, full: bool, data: st.DataObject
) -> None:
    edges = edges_of(sizes)
    lanes = 1 if full else lanes
    order: Order = FullOrder(sum(sizes), 3, edges) if full else BlockOrder(edges, 3, block, lanes)
    length = order.length // lanes
    if not length:
        return
    lane, stop = data.draw(st.integers(0, lanes - 1)), data.draw(st.integers(1, length))
    start, epochs = data.draw(st.integers(0, stop - 1)), data.draw(st.integers(1, 2))
    uses: dict[int, int] = {}
    for later in range(epochs):
        begins = order.block_edges(5 + later, lane)
        for begin, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
            if begin < stop and (later or end > start):
                for image in order.images(5 + later, lane, begin, end).tolist():
                    uses.setdefault(shard_of(edges, image), begin + later * stop)
    shards, places = order.next_use(5, lane, start, stop, epochs)
    assert dict(zip(shards.tolist(), places.tolist(), strict=True)) == uses
    assert (np.diff(places) >= 0).all()


@given(counts, st.integers(1, 9))
def test_evaluation_reads_its_shards_one_after_the_other(sizes: list[int], world: int) -> None:
    edges, total = edges_of(sizes), sum(sizes)
    order, taken = StoredOrder(edges, world), []
    for rank in range(world):
        held = list(range(total * rank // world, total * (rank + 1) // world))
        assert order.images(0, rank, 0, len(held) + 5).tolist() == held
        assert order.shards(0, rank, 0, len(held)).tolist() == firsts([shard_of(edges, image) for image in held])
        for block in range(len(order.block_edges(0, rank)) - 1):
            assert len(order.block_shards(0, rank, block)) == 1
        taken += held
    assert order.length == len(taken) == total


@given(st.integers(1, 3000), st.integers(0, 500), st.integers(0, 2**32 - 1))
def test_the_full_order_is_numpys_shuffle(num_images: int, epoch: int, seed: int) -> None:
    found = FullOrder(num_images, seed).images(epoch, 0, 0, num_images)
    assert found.tolist() == numpy_shuffle(seed, (epoch,), list(range(num_images)))


@pytest.mark.parametrize(
    ("num_images", "epoch", "seed", "first", "digest"),
    [
        (10, 0, 0, [0, 7, 8, 6, 9, 5], "125a3260757541ed"),
        (1000, 7, 3, [538, 531, 546, 193, 487, 332], "1ce686c0c3f0451a"),
        (1_281_167, 299, 0, [801891, 518063, 1089851, 551315, 854809, 296314], "ae45d945e0d3a46e"),
    ],
)
def test_the_full_order_is_what_runs_have_had_so_far(
    num_images: int, epoch: int, seed: int, first: list[int], digest: str
) -> None:
    """Values of the version before there were orders: a run of then goes on with the same images."""
    found = FullOrder(num_images, seed).images(epoch, 0, 0, num_images)
    assert found[:6].tolist() == first
    assert hashlib.sha256(found.astype("<i8").tobytes()).hexdigest()[:16] == digest


def test_the_block_order_stays_as_it_is() -> None:
    order = BlockOrder(edges_of([5, 1, 7, 3, 0, 9, 4, 8, 2, 6]), seed=11, block=3, lanes=2)
    assert order.images(4, 0, 0, 22).tolist() == [
        7, 30, 4, 33, 8, 34, 36, 13, 14, 31, 35, 9, 10, 29, 1, 6, 3, 11, 12, 2, 32, 0,
    ]  # fmt: skip
    assert order.images(4, 1, 9, 22).tolist() == [21, 22, 28, 26, 18, 17, 27, 23, 16, 20, 25, 5, 19]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    edges = edges_of([20] * 50)
    orders = [BlockOrder(edges, seed, 5).images(epoch, 0, 0, 1000) for epoch in range(4) for seed in range(4)]
    correlation = np.corrcoef(np.array([np.arange(1000), *orders], np.float64))
    assert np.abs(correlation - np.eye(17)).max() < 0.3  # whole shards go together, so less even than images


def test_an_epoch_of_13_million_images_is_entered_midway_without_an_array_of_its_length() -> None:
    """Targets: 20 ms of an idle machine; a block of 90 shards is 4.6 MB."""
    edges = np.arange(2049) * 6348
    BlockOrder(edges[:10], 0, 2).images(0, 0, 0, 9)  # numpy's first call of anything costs more
    sampler = TrainSampler(BlockOrder(edges, 0, 90), 1, 2048)
    steps = sampler.steps_per_epoch
    tracemalloc.start()
    before = time.thread_time()
    batch = sampler.batch(200 * steps + steps // 2)
    seconds, (_, peak) = time.thread_time() - before, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(batch.indices)) == 2048
    assert seconds < 0.2
    assert peak < 40_000_000  # 13 million bytes each would be 52 MB as uint32
