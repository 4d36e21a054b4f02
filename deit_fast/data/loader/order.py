"""Which image comes at which place of an epoch: a pure function of the seed, the epoch and the set's shards alone.

An order does not depend on the number of processes, on the disk, or on the times at which shards arrive. `FullOrder`
shuffles all images. `BlockOrder` shuffles the shards, and then the images of a block of shards together, so that only a
block's shards have to be at hand; its lanes divide an epoch among nodes. `StoredOrder` is for evaluation: images in
their stored order.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.loader.permutation import epoch_permutation
from deit_fast.runtime.philox import Stream, generator

Images = NDArray[np.int64] | NDArray[np.uint32]  # uint32 for as many images as in the whole set

_FIRST_CHUNK = 1024  # images that are searched for shards first; the number doubles after each search


class Order(ABC):
    """The order of N images in shards, divided into lanes that are read in parallel. Safe to use from several threads.

    edges: int64 [shards + 1]. Shard s holds the images edges[s] to edges[s + 1] - 1.
    """

    def __init__(self, edges: NDArray[np.int64], lanes: int) -> None:
        self.edges, self.lanes = edges, lanes
        self._recent: dict[int, tuple[tuple[tuple[int, int], Images], ...]] = {}

    @property
    def length(self) -> int:
        """Number of images that an epoch uses.

        Fewer than `lanes` images are left over, and other ones in each epoch.
        """
        return int(self.edges[-1]) // self.lanes * self.lanes

    @abstractmethod
    def block_edges(self, epoch: int, lane: int) -> NDArray[np.int64]:
        """The start of each of the lane's blocks, and the end of the last: int64 [blocks + 1], places in the lane."""

    @abstractmethod
    def block_shards(self, epoch: int, lane: int, block: int) -> NDArray[np.int64]:
        """The shards that hold a block's images, each once, int64 [k], in the epoch's order of shards."""

    @abstractmethod
    def _block_images(self, epoch: int, lane: int, block: int) -> Images:
        """The block's images in their order, [images of the block]."""

    def images(self, epoch: int, lane: int, start: int, stop: int) -> NDArray[np.int64]:
        """The images at the places `start` to stop - 1 of a lane's epoch, int64 [stop - start]."""
        spans = self._spans(epoch, lane, start, stop)
        parts = [self._block(epoch, lane, block)[first:last] for block, first, last in spans]
        return np.concatenate(parts, dtype=np.int64) if parts else np.empty(0, np.int64)

    def shards(self, epoch: int, lane: int, start: int, stop: int) -> NDArray[np.int64]:
        """The shards of these images, each once, int64 [k], in the order of their first images."""
        found: list[NDArray[np.int64]] = []
        for block, first, last in self._spans(epoch, lane, start, stop):
            possible = len(self.block_shards(epoch, lane, block))
            found.append(self._first_need(self._block(epoch, lane, block)[first:last], possible))
        return once(np.concatenate(found)) if found else np.empty(0, np.int64)

    def next_use(
        self, epoch: int, lane: int, start: int, stop: int, epochs: int = 2
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards that the lane needs next, and when, from place `start` of `epoch` to the end of `epochs` epochs.

        stop: number of places of an epoch that are used. Returns the shards, each once, in the order of the blocks that
        need them, int64 [k]; and the places at which these blocks begin, [k], counted from the start of `epoch`. A
        shard that is not returned is needed later.
        """
        shards, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for later in range(epochs):
            edges = self.block_edges(epoch + later, lane)
            for block in range(0 if later else self.block_at(epoch, lane, start), len(edges) - 1):
                if edges[block] >= stop:
                    break
                shards.append(self.block_shards(epoch + later, lane, block))
                places.append(np.full(len(shards[-1]), edges[block] + later * stop))
        every, when = np.concatenate(shards), np.concatenate(places)
        first = np.sort(np.unique(every, return_index=True)[1])
        return every[first], when[first]

    def block_at(self, epoch: int, lane: int, place: int) -> int:
        """The block that holds a place of a lane's epoch; for a place past the end, the last block."""
        edges = self.block_edges(epoch, lane)
        return max(min(int(np.searchsorted(edges, place, "right")), len(edges) - 1) - 1, 0)

    def _spans(self, epoch: int, lane: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The blocks that a span touches, each with the span's first place in it and the place after the last one."""
        edges = self.block_edges(epoch, lane)
        for block in range(self.block_at(epoch, lane, start), len(edges) - 1):
            begin, end = int(edges[block]), int(edges[block + 1])
            if begin >= stop:
                return
            yield block, max(start - begin, 0), min(stop, end) - begin

    def _block(self, epoch: int, lane: int, block: int) -> Images:
        """`_block_images`, cached for the lane's last two blocks."""
        key, recent = (epoch, block), self._recent.get(lane, ())
        for each, images in recent:
            if each == key:
                return images
        images = self._block_images(epoch, lane, block)
        self._recent[lane] = (*recent[-1:], (key, images))  # replaced: another thread may be reading the tuple
        return images

    def _first_need(self, images: Images, possible: int) -> NDArray[np.int64]:
        """The shards of the images, in the order of their first images; usually the first few images have all.

        possible: the largest number of shards.
        """
        found, start, size = np.empty(0, np.int64), 0, _FIRST_CHUNK
        while start < len(images) and len(found) < possible:
            part = np.searchsorted(self.edges, images[start : start + size], "right") - 1
            found = once(np.concatenate((found, part)))
            start, size = start + size, 2 * size
        return found


class FullOrder(Order):
    """All images shuffled together anew in each epoch, by (seed, epoch): one lane, one block.

    edges: None, for a data set without shards, makes all images one shard.
    """

    def __init__(self, num_images: int, seed: int, edges: NDArray[np.int64] | None = None) -> None:
        super().__init__(np.array([0, num_images]) if edges is None else edges, lanes=1)
        self._seed = seed

    def block_edges(self, epoch: int, lane: int) -> NDArray[np.int64]:
        return self.edges[[0, -1]]

    def block_shards(self, epoch: int, lane: int, block: int) -> NDArray[np.int64]:
        return np.flatnonzero(np.diff(self.edges))

    def _block_images(self, epoch: int, lane: int, block: int) -> Images:
        return epoch_permutation(self.length, self._seed, epoch)


class BlockOrder(Order):
    """Shards shuffled anew in each epoch, and then the images of about `block` shards together.

    The images of the sequence of shards are cut into `lanes` of equal length, so two lanes may share a shard. Each lane
    is cut, between its shards, into as many blocks of at least `block` shards as possible, whose sizes differ by one
    shard at most. A lane with fewer shards is one block. Only blocks that are asked for are made, and no array has the
    length of an epoch.
    """

    def __init__(self, edges: NDArray[np.int64], seed: int, block: int, lanes: int = 1) -> None:
        super().__init__(edges, lanes)
        self._seed, self._size = seed, block
        self._filled = np.flatnonzero(np.diff(edges))
        self._epochs: tuple[tuple[int, NDArray[np.int64], NDArray[np.int64]], ...] = ()

    def block_edges(self, epoch: int, lane: int) -> NDArray[np.int64]:
        _, _, places, cuts = self._lane(epoch, lane)
        return places[cuts]

    def block_shards(self, epoch: int, lane: int, block: int) -> NDArray[np.int64]:
        shards, _, _, cuts = self._lane(epoch, lane)
        return shards[cuts[block] : cuts[block + 1]]

    def _block_images(self, epoch: int, lane: int, block: int) -> Images:
        _, first, places, cuts = self._lane(epoch, lane)
        held = slice(cuts[block], cuts[block + 1])
        sizes = np.diff(places)[held]
        begins = np.cumsum(sizes) - sizes
        images = np.arange(sizes.sum()) + np.repeat(first[held] - begins, sizes)
        # The word 0 belongs to the shuffle of the shards.
        generator(self._seed, Stream.ORDER, epoch, lane, block + 1).shuffle(images)
        return images

    def _lane(
        self, epoch: int, lane: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The lane's p shards [p], the first image of each in the lane [p], the shards' edges, the blocks' edges.

        The shards' edges are places in the lane, [p + 1]. The blocks' edges are places among the shards, [blocks + 1].
        """
        shards, ends = self._sequence(epoch)
        length = self.length // self.lanes
        start, stop = lane * length, (lane + 1) * length
        held = slice(int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends, stop, "left")) + 1)
        shards, ends = shards[held], ends[held]
        begins = ends - np.diff(self.edges)[shards]
        places = np.append(np.maximum(begins, start), stop) - start
        first = self.edges[shards] + np.maximum(start - begins, 0)
        blocks = max(1, len(shards) // self._size)
        return shards, first, places, np.arange(blocks + 1) * len(shards) // blocks

    def _sequence(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's shards in order [shards], and the number of images up to the end of each [shards]."""
        for known, shards, ends in self._epochs:
            if known == epoch:
                return shards, ends
        shards = self._filled.copy()
        generator(self._seed, Stream.ORDER, epoch).shuffle(shards)
        ends = np.cumsum(np.diff(self.edges)[shards])
        self._epochs = (*self._epochs[-1:], (epoch, shards, ends))
        return shards, ends


class StoredOrder(Order):
    """Images in their stored order, for evaluation: lane r belongs to rank r of `lanes`; each shard is a block."""

    @property
    def length(self) -> int:
        return int(self.edges[-1])

    def block_edges(self, epoch: int, lane: int) -> NDArray[np.int64]:
        start, stop = self._bounds(lane)
        inner = self.edges[(self.edges > start) & (self.edges < stop)]
        return np.unique(np.concatenate(([start], inner, [stop]))) - start

    def block_shards(self, epoch: int, lane: int, block: int) -> NDArray[np.int64]:
        place = self._bounds(lane)[0] + self.block_edges(epoch, lane)[block]
        return np.searchsorted(self.edges, [place], "right") - 1

    def _block_images(self, epoch: int, lane: int, block: int) -> Images:
        start, stop = self._bounds(lane)[0] + self.block_edges(epoch, lane)[block : block + 2]
        return np.arange(start, stop)

    def _bounds(self, lane: int) -> tuple[int, int]:
        return self.length * lane // self.lanes, self.length * (lane + 1) // self.lanes


def once(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The values [n] without repetitions, in the order of their first occurrences, [k]."""
    return values[np.sort(np.unique(values, return_index=True)[1])]
