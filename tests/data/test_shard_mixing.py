"""How well blocks of shards mix, by what was measured of them, and which shards are told to be sorted."""

import numpy as np
import pytest
from numpy.typing import NDArray

from deit_fast.data.loader.mixing import is_sorted
from deit_fast.data.loader.order import BlockOrder, FullOrder, Order
from deit_fast.data.loader.streaming_plan import pairs_again, recommended_block

SHARDS, EACH, CLASSES, BATCH = 64, 250, 20, 200
EDGES = np.arange(SHARDS + 1) * EACH


def batches_of(order: Order, epoch: int) -> NDArray[np.int64]:
    """The batch of each image in an epoch, -1 for those left over."""
    share = BATCH // order.lanes
    steps = order.length // BATCH
    found = np.full(SHARDS * EACH, -1)
    for lane in range(order.lanes):
        found[order.images(epoch, lane, 0, steps * share)] = np.repeat(np.arange(steps), share)
    return found


def met_again(order: Order) -> float:
    """Pairs of one batch that are in one batch of the next epoch too, over a full shuffle's expectation; 3 epochs."""
    ratios = []
    for epoch in range(3):
        one, other = batches_of(order, epoch), batches_of(order, epoch + 1)
        used = (one >= 0) & (other >= 0)
        together = np.bincount(one[used] * 1000 + other[used])
        pairs = (together * (together - 1)).sum() / 2
        alone = np.bincount(one[used])
        ratios.append(pairs / ((alone * (alone - 1)).sum() / 2 * (BATCH - 1) / (SHARDS * EACH - 1)))
    return float(np.mean(ratios))


def unevenness(order: Order, labels: NDArray[np.int64]) -> float:
    """Chi-square of a batch's classes over its degrees of freedom, mean over an epoch: 1 for a full shuffle."""
    batches = batches_of(order, 0)
    expected, found = BATCH / CLASSES, []
    for batch in range(batches.max() + 1):
        counts = np.bincount(labels[batches == batch], minlength=CLASSES)
        found.append(((counts - expected) ** 2 / expected).sum() / (CLASSES - 1))
    return float(np.mean(found))


@pytest.mark.parametrize(("block", "lanes"), [(0, 1), (4, 1), (8, 1), (16, 1), (64, 1), (8, 2), (4, 4), (8, 4)])
def test_blocks_mix_as_well_as_the_plan_says(block: int, lanes: int) -> None:
    """Where a block is several batches, as in the first: of 4 shards, 5 batches."""
    order = BlockOrder(EDGES, 0, block, lanes) if block else FullOrder(SHARDS * EACH, 0, EDGES)
    assert met_again(order) == pytest.approx(pairs_again(SHARDS, block, lanes), rel=0.15)
    shuffled = np.random.default_rng(0).permutation(np.arange(SHARDS * EACH) % CLASSES)
    assert unevenness(order, shuffled) == pytest.approx(1, abs=0.12)
    by_class = np.sort(shuffled)
    assert is_sorted(by_class, EDGES)
    assert not is_sorted(shuffled, EDGES)
    if 0 < block * lanes < 64:
        assert unevenness(order, by_class) > 1.5


def test_the_recommended_block_is_nearly_a_full_shuffle() -> None:
    for shards in (100, 300, 640, 2048, 10_240):
        block = recommended_block(shards)
        assert block == pytest.approx(2 * np.sqrt(shards), abs=0.51)
        assert 1 < pairs_again(shards, block) <= 1.27
    assert [recommended_block(shards) for shards in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert pairs_again(3, 3) == pairs_again(2048, 0) == 1


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.uint16])
@pytest.mark.parametrize(("classes", "each"), [(2, 400), (10, 50), (1000, 40)])
def test_sorted_shards_are_told_from_shuffled_ones(classes: int, each: int, dtype: type) -> None:
    rng = np.random.default_rng(classes)
    rows = np.zeros(classes * each, [("offset", "<u4"), ("label", dtype)])  # labels are a view with gaps
    rows["label"] = np.repeat(np.arange(classes), each)
    edges = np.linspace(0, len(rows), 21).astype(np.int64)
    assert is_sorted(rows["label"], edges)
    parts = rows["label"].reshape(20, -1)
    rng.permuted(parts, axis=1, out=parts)  # shuffled within each shard alone
    assert is_sorted(rows["label"], edges)
    halves = np.concatenate([rng.permutation(half) for half in np.array_split(rows["label"], 2)])
    assert is_sorted(halves, edges)
    for _ in range(20):
        assert not is_sorted(rng.permutation(rows["label"]), edges)


def test_rare_classes_and_few_images_are_no_sorting() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        rare = rng.zipf(1.3, 3000) % 500
        assert not is_sorted(rare, np.array([0, 10, 700, 700, 1500, 2900, 3000]))
        assert not is_sorted(rng.integers(0, 3, 12), np.array([0, 3, 6, 9, 12]))
    assert not is_sorted(np.zeros(100, np.int64), np.array([0, 50, 100]))
    assert not is_sorted(np.arange(10) // 5, np.array([0, 10]))
    assert not is_sorted(np.arange(2), np.array([0, 1, 2]))
