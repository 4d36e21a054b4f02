"""What sources are told about their shards: all that the batches in the making need, and what comes after, in order."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deit_fast.data.loader.batches import EvalLoader, TrainLoader
from deit_fast.data.loader.order import BlockOrder, FullOrder, Order, StoredOrder
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.loader.window import Window
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.memory_cache import keep_in_memory
from deit_fast.data.sources.open import open_source
from deit_fast.recipe.sections import Augment, Data

CPU = torch.device("cpu")


class InShards(Source):
    """Images of another source as if they lay in shards; keeps what it is told, and what is read between."""

    def __init__(self, source: Source | None, edges: NDArray[np.int64]) -> None:
        labels = np.zeros(edges[-1], np.int64) if source is None else source.labels[: edges[-1]]
        super().__init__("shards", ["a"] if source is None else source.classes, labels)
        self.shard_edges, self._source = edges, source
        self.told: list[tuple[list[int], int]] = []
        self.unprotected: list[int] = []
        self.reads = 0

    def read(self, index: int) -> NDArray[np.uint8]:
        assert self._source is not None
        self.reads += 1
        shards, protected = self.told[-1]
        if self.shard_of(index) not in shards[:protected]:
            self.unprotected.append(index)
        return self._source.read(index)

    def name(self, index: int) -> str:
        return f"shards:{index}.jpg"

    def expect(self, shards: NDArray[np.int64], protected: int) -> None:
        assert shards.dtype == np.int64
        self.told.append((shards.tolist(), protected))

    def shard_of(self, index: int) -> int:
        assert self.shard_edges is not None
        return int(np.searchsorted(self.shard_edges, index, "right")) - 1


def edges_of(sizes: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


class Told:
    """What a source has to be told at a step, found by looking at every image of two epochs."""

    def __init__(self, source: InShards, sampler: TrainSampler, lanes: Sequence[int], stop: int) -> None:
        self.order, self.steps = sampler.order, sampler.steps_per_epoch
        self.source, self.sampler, self.lanes, self.stop = source, sampler, lanes, stop
        self.used = -(-self.steps * sampler.lane_views // sampler.repeats)

    def blocks(self, lane: int, epoch: int, whole: bool = False) -> list[list[int]]:
        """The images of each block that the epoch gets to, as far as it gets or whole."""
        edges = self.order.block_edges(epoch, lane).tolist()
        return [self.order.images(epoch, lane, begin, end if whole else min(end, self.used)).tolist()
                for begin, end in pairwise(edges) if begin < self.used]  # fmt: skip

    def span(self, step: int) -> tuple[int, int, int]:
        epoch, number = divmod(step, self.steps)
        views = self.sampler.lane_views
        return epoch, number * views // self.sampler.repeats, -(-(number + 1) * views // self.sampler.repeats)

    def near(self, oldest: int, newest: int, whole: bool = False) -> set[int]:
        """The shards of all images from the oldest batch's first to the last of the block after the newest batch.

        whole: those of all blocks that are touched, as much as may stay on the disk.
        """
        (begin, start, _), (end, _, stop) = self.span(oldest), self.span(newest)
        images: set[int] = set()
        for lane in self.lanes:
            place, after = 0, False
            for epoch in range(begin, end + 2):
                if epoch * self.steps >= self.stop:
                    break
                place = 0
                for block in self.blocks(lane, epoch, whole):
                    first, last = place, place + len(block)
                    place = last
                    if epoch == begin and last <= start:
                        continue
                    images |= set(block[max(start - first, 0) :] if epoch == begin and not whole else block)
                    after, done = (epoch, last) >= (end, stop), after
                    if done:
                        break
                else:
                    continue
                break
        return {self.source.shard_of(image) for image in images}

    def until_the_next_epochs_end(self, newest: int) -> dict[int, tuple[int, int]]:
        """The epoch and place of the block in which each shard is needed next."""
        epoch, _, stop = self.span(newest)
        uses: dict[int, tuple[int, int]] = {}
        for lane in self.lanes:
            for each in (epoch, epoch + 1):
                if each * self.steps >= self.stop:
                    continue
                place = 0
                for block in self.blocks(lane, each, whole=True):
                    last = place + len(block)
                    if each > epoch or last >= stop:
                        for shard in {self.source.shard_of(image) for image in block}:
                            uses[shard] = min(uses.get(shard, (each, place)), (each, place))
                    place = last
        return uses


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=25),
    st.integers(0, 6),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 3),
    st.integers(0, 6),
    st.data(),
)
def test_the_window_holds_what_is_in_the_making_and_the_block_after(
    sizes: list[int], block: int, lanes: int, repeats: int, ahead: int, data: st.DataObject
) -> None:
    edges = edges_of([*sizes, 16])
    order: Order = BlockOrder(edges, 3, block, lanes) if block else FullOrder(edges[-1], 3, edges)
    sampler = TrainSampler(order, repeats, 16, group=4)
    lanes = order.lanes
    node = data.draw(st.sets(st.integers(0, lanes - 1), min_size=1))
    stop = data.draw(st.integers(1, 3 * sampler.steps_per_epoch))
    source = InShards(None, edges)
    window = Window(source, order, sorted(node), sampler.lane_views, repeats, sampler.steps_per_epoch, stop)
    expected = Told(source, sampler, sorted(node), stop)
    for newest in sorted(data.draw(st.sets(st.integers(0, stop - 1), min_size=1, max_size=4))):
        count = len(source.told)
        oldest = max(newest - ahead, 0)
        window.tell(oldest, newest)
        if len(source.told) == count:
            near = expected.near(oldest, newest)
            assert near <= set(source.told[-1][0][: source.told[-1][1]])  # still, as no other block began
            continue
        shards, protected = source.told[-1]
        assert len(set(shards)) == len(shards)
        uses, near = expected.until_the_next_epochs_end(newest), expected.near(oldest, newest)
        assert near <= set(shards[:protected]) <= expected.near(oldest, newest, whole=True)
        assert set(uses) <= set(shards)
        later = [uses[shard] for shard in shards[protected:] if shard in uses]
        assert later == sorted(later)


def test_it_is_told_once_for_each_window_and_not_for_each_batch() -> None:
    edges = edges_of([100] * 30)
    sampler = TrainSampler(BlockOrder(edges, 0, 5), 1, 20)
    source = InShards(None, edges)
    window = Window(source, sampler.order, [0], 20, 1, sampler.steps_per_epoch, 10 * sampler.steps_per_epoch)
    for newest in range(2 * sampler.steps_per_epoch):
        window.tell(max(newest - 5, 0), newest)
    # 12 blocks of 25 batches: each comes into the window with the newest batch and leaves it with the oldest.
    assert len(source.told) == 2 * 12 - 1
    assert [protected for _, protected in source.told[:3]] == [10, 15, 10]
    assert all(len(shards) == 30 for shards, _ in source.told)


def test_a_resumed_block_needs_only_what_is_left_of_it() -> None:
    edges = edges_of([10] * 12)
    order = BlockOrder(edges, 0, 6)
    sampler = TrainSampler(order, 1, 4)
    source = InShards(None, edges)
    Window(source, order, [0], 4, 1, sampler.steps_per_epoch, 30).tell(14, 14)  # of 15 batches
    left = [source.shard_of(image) for image in order.images(0, 0, 56, 60).tolist()]
    assert source.told[0][0][: len(set(left))] == list(dict.fromkeys(left))
    assert source.told[0][1] == len(set(left)) + 6


def test_the_last_epoch_expects_no_other() -> None:
    edges = edges_of([10] * 12)
    order = BlockOrder(edges, 0, 3)
    source = InShards(None, edges)
    Window(source, order, [0], 6, 1, 20, 40).tell(39, 39)
    shards, protected = source.told[0]
    assert protected == len(shards) <= 3


@settings(max_examples=30)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=12).filter(any), st.integers(1, 5), st.integers(1, 9))
def test_evaluation_protects_the_shards_of_its_ranks(sizes: list[int], world: int, batch: int) -> None:
    edges = edges_of(sizes)
    source, order, total = InShards(None, edges), StoredOrder(edges, world), sum(sizes)
    steps = -((total // -world) // batch)
    window = Window(source, order, range(world), batch, 1, steps, steps)
    for step in range(steps):
        window.tell(max(step - 2, 0), step)
        shards, protected = source.told[-1]
        for rank in range(world):
            start, stop = total * rank // world, total * (rank + 1) // world
            held = range(start + max(step - 2, 0) * batch, min(start + (step + 1) * batch, stop))
            assert {source.shard_of(image) for image in held} <= set(shards[:protected])
            left = range(min(start + (step + 1) * batch, stop), stop)
            assert {source.shard_of(image) for image in left} <= set(shards)


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("cached", [0, 1])
def test_training_reads_only_what_was_told_to_stay(folder_data: Path, block: int, cached: float) -> None:
    edges = edges_of([8] * 12)
    source = InShards(open_source(str(folder_data), "train"), edges)
    order: Order = BlockOrder(edges, 0, block) if block else FullOrder(96, 0, edges)
    sampler = TrainSampler(order, 1, 8)
    given = keep_in_memory(source, cached)
    loader = TrainLoader(given, Augment(), 16, [sampler], 0, CPU, 1, start_step=5, stop_step=29)
    for batch in loader:
        assert batch.indices.tolist() == sampler.batch(batch.step).indices.tolist()
    loader.close()
    assert source.reads >= 90
    assert not source.unprotected
    assert source.told[-1] == ([], 0)
    assert len(source.told) > (10 if block else 3)
    assert all(protected == 12 for _, protected in source.told[:-1] if not block)


def test_what_was_not_handed_over_stays_protected(folder_data: Path) -> None:
    """It may have to be read again. Blocks are two batches here, so that those in the making are of several."""
    edges, received = edges_of([8] * 12), 0

    class Counted(InShards):
        def expect(self, shards: NDArray[np.int64], protected: int) -> None:
            super().expect(shards, protected)
            if protected:
                # The batch with this number may have been handed over and not counted yet; the next one was not.
                images = sampler.batch(min(received + 1, 39)).indices.tolist()
                lacking.extend({self.shard_of(image) for image in images} - set(shards[:protected].tolist()))

    lacking: list[int] = []
    source = Counted(open_source(str(folder_data), "train"), edges)
    sampler = TrainSampler(BlockOrder(edges, 0, 2), 1, 8)
    loader = TrainLoader(source, Augment(), 16, [sampler], 0, CPU, 1, stop_step=40)
    for _ in loader:
        received += 1
    loader.close()
    assert received == 40
    assert not lacking


def test_a_substitute_may_be_of_any_shard(folder_data: Path) -> None:
    """It is chosen among all images, as always, and read from wherever it is."""
    edges = edges_of([8] * 12)

    class Spoiled(InShards):
        def read(self, index: int) -> NDArray[np.uint8]:
            data = super().read(index)
            return data[:20] if index == spoiled else data

    source = Spoiled(open_source(str(folder_data), "train"), edges)
    sampler = TrainSampler(BlockOrder(edges, 0, 2), 1, 8)
    spoiled = int(sampler.batch(0).indices[0])
    loader = TrainLoader(source, Augment(), 16, [sampler], 0, CPU, 1, stop_step=1)
    (batch,) = list(loader)
    loader.close()
    assert set(batch.bad) == {spoiled}
    assert set(source.unprotected) <= set(batch.indices.tolist())


def test_evaluation_reads_only_what_was_told_to_stay(folder_data: Path) -> None:
    edges = edges_of([5, 7, 1, 9, 11])
    taken = []
    for rank in range(2):
        source = InShards(open_source(str(folder_data), "val"), edges)
        loader = EvalLoader(source, Data(), 16, 4, CPU, 1, rank, 2, node=range(2))
        for _ in range(2):  # a loader is iterated again and again
            taken += [index for batch in loader for index in batch.indices[: batch.valid].tolist()]
        loader.close()
        assert set(source.unprotected) <= {12}  # what fills the batch that rank 0 has too many, once more
        assert source.told[-1] == ([], 0)
    assert sorted(taken) == sorted([*range(33)] * 2)
