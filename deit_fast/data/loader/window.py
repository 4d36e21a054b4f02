"""Tells a source that fetches shards which of them the batches in the making need, and which come after."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.loader.order import Order, once
from deit_fast.data.sources.base import Source


class Window:
    """The blocks from that of the oldest batch not yet handed over to the one after the newest planned batch's.

    Whenever these blocks change, the source is told all shards in the order of their next use, the window's shards
    first. The order of shards is known up to the end of the next epoch, so fetching does not depend on the times of
    arrival. Steps count from the start of the run.

    lanes: those of this machine's processes. views: number of views that each lane gives to a step. repeats: views of
    an image. steps: number of steps in an epoch. stop: the step after the run's last one.
    """

    def __init__(
        self, source: Source, order: Order, lanes: Sequence[int], views: int, repeats: int, steps: int, stop: int
    ) -> None:
        self._source, self._order = source, order
        # With many ranks, a rank may have no image to evaluate.
        self._lanes = [lane for lane in lanes if len(order.block_edges(0, lane)) > 1]
        self._views, self._repeats, self._steps, self._stop = views, repeats, steps, stop
        self._used = -(-steps * views // repeats)  # number of places used in a lane's epoch
        self._told: list[tuple[int, int]] = []

    def tell(self, oldest: int, newest: int) -> None:
        """Tells the source of changes, if there are any, when the batches of these steps are in the making."""
        ends = self._first(oldest), self._last(newest)
        blocks = [self._block(lane, place) for lane in self._lanes for place in ends]
        if blocks == self._told:
            return
        self._told = blocks
        near, rest = self._near(oldest, newest), self._rest(newest)
        self._source.expect(np.concatenate((near, rest[~np.isin(rest, near)])), len(near))

    def close(self) -> None:
        """Tells the source that no more shards are read."""
        if self._told:
            self._told = []
            self._source.expect(np.empty(0, np.int64), 0)

    def _first(self, step: int) -> tuple[int, int]:
        """The epoch, and the place in each lane, of a step's first image."""
        epoch, number = divmod(step, self._steps)
        return epoch, number * self._views // self._repeats

    def _last(self, step: int) -> tuple[int, int]:
        """The epoch, and the place in each lane, of a step's last image."""
        epoch, number = divmod(step, self._steps)
        return epoch, ((number + 1) * self._views - 1) // self._repeats

    def _block(self, lane: int, place: tuple[int, int]) -> tuple[int, int]:
        return place[0], self._order.block_at(place[0], lane, place[1])

    def _near(self, oldest: int, newest: int) -> NDArray[np.int64]:
        """The window's shards, int64 [k]: those that the batches and their blocks still need, then the next block's.

        Lanes are read in parallel, so their shards alternate.
        """
        (begin, start), (end, _) = self._first(oldest), self._last(newest)
        ranked = []
        for lane in self._lanes:
            _, block = self._block(lane, self._last(newest))
            for epoch in range(begin, end + 1):
                stop = self._order.block_edges(epoch, lane)[block + 1] if epoch == end else self._used
                since = start if epoch == begin else 0
                ranked.append((2 * epoch, self._order.shards(epoch, lane, since, min(int(stop), self._used))))
            if (after := self._after(lane, end, block)) is not None:
                ranked.append((2 * end + 1, self._order.block_shards(after[0], lane, after[1])))
        return _in_turns(ranked)

    def _after(self, lane: int, epoch: int, block: int) -> tuple[int, int] | None:
        """The block after this one, in its epoch or the next; None at the end of the run."""
        edges = self._order.block_edges(epoch, lane)
        if edges[block + 1] < min(self._used, edges[-1]):
            return epoch, block + 1
        return (epoch + 1, 0) if (epoch + 1) * self._steps < self._stop else None

    def _rest(self, newest: int) -> NDArray[np.int64]:
        """Every shard needed before the end of the next epoch, int64 [k], in the order of the blocks of all lanes."""
        epoch, place = self._last(newest)
        epochs = 2 if (epoch + 1) * self._steps < self._stop else 1
        return _in_turns([
            (int(when), shards[places == when])
            for lane in self._lanes
            for shards, places in [self._order.next_use(epoch, lane, place, self._used, epochs)]
            for when in np.unique(places)
        ])  # fmt: skip


def _in_turns(ranked: Sequence[tuple[int, NDArray[np.int64]]]) -> NDArray[np.int64]:
    """Merges lists of shards with a rank each, [k], each shard once: by rank; lists of equal rank alternate."""
    if not ranked:
        return np.empty(0, np.int64)
    shards = np.concatenate([each for _, each in ranked])
    ranks = np.repeat([rank for rank, _ in ranked], [len(each) for _, each in ranked])
    turns = np.concatenate([np.arange(len(each)) for _, each in ranked])
    return once(shards[np.lexsort((turns, ranks))])
