"""Batches of training and of evaluation, in the sampler's order; `deit_fast.data.loader` explains how they are made."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deit_fast.data.augment.erase import EraseParams, draw_erasing
from deit_fast.data.augment.view_params import draw_views, eval_geometry
from deit_fast.data.loader.dali import HW_DECODER_LOAD, Pipeline
from deit_fast.data.loader.order import StoredOrder
from deit_fast.data.loader.pipeline import decodes_windows, eval_pipeline, train_inputs, train_pipeline
from deit_fast.data.loader.producer import Plan, Prepared, Producer
from deit_fast.data.loader.sampler import StepIndices, TrainSampler, eval_indices
from deit_fast.data.loader.substitute import Substitutes
from deit_fast.data.loader.window import Window
from deit_fast.data.sources.base import Source
from deit_fast.recipe.sections import Augment, Data
from deit_fast.runtime.hardware import cpu_threads
from deit_fast.runtime.host_memory import limit_arenas
from deit_fast.runtime.patience import PATIENCE_SECONDS


@dataclass(frozen=True)
class Batch:
    """b images on the device. In evaluation the last `b - valid` images are padding."""

    images: torch.Tensor
    """uint8 [b, 3, S, S] in channels_last memory, RGB, not normalised."""
    labels: torch.Tensor
    """int64 [b]."""
    indices: NDArray[np.int64]
    """[b]. Indices of the source's images; in training those of the images that are shown, after substitution."""
    positions: NDArray[np.int64] | None
    """[b]. Places in the global batch; None in evaluation."""
    epoch: int
    """Epoch, counted from 0; 0 in evaluation."""
    step: int
    """Optimizer step in training, number of the batch in evaluation."""
    valid: int
    erasing: EraseParams | None = None
    """The boxes that the step has to erase after normalisation, if the recipe uses erasing."""
    bad: Mapping[int, str] = field(default_factory=dict)
    """Images that could not be used and were replaced, with the reasons in words."""


class _Loader(ABC):
    """The common part of training and evaluation. One iteration can be open: starting another one ends it."""

    def __init__(
        self, source: Source, device: torch.device, patience: float, substitutes: Substitutes | None = None
    ) -> None:
        self._source, self._device, self._patience, self._substitutes = source, device, patience, substitutes
        self._producer: Producer | None = None
        self._pipeline: Pipeline | None = None
        if device.type == "cpu":  # before the threads of readers and decoders start
            limit_arenas(max(2, cpu_threads()))

    @abstractmethod
    def _plans(self) -> Iterator[Plan]: ...

    @abstractmethod
    def _window(self) -> Window | None:
        """Tells the source which shards come next; None where it has no shards."""

    @abstractmethod
    def _build_pipeline(self) -> Pipeline: ...

    def _feed(self) -> list[Any]:
        assert self._producer is not None
        return self._producer.next_inputs()

    def __iter__(self) -> Iterator[Batch]:
        self._stop()
        pipeline, self._pipeline = self._pipeline or self._build_pipeline(), None
        made = self._plans(), self._substitutes, self._patience, self._window()
        producer = self._producer = Producer(self._source, *made)
        try:
            while self._producer is producer:
                try:
                    images = pipeline.run()
                except StopIteration:
                    pipeline.reset()
                    self._pipeline = pipeline
                    break
                except RuntimeError as error:
                    producer.recover(error)
                    del pipeline
                    pipeline = self._build_pipeline()
                    continue
                yield self._batch(producer.hand_over(), images)
            if producer.error is not None:
                raise producer.error
        finally:
            producer.close()

    def close(self) -> None:
        """Ends the open iteration with its threads and its pipeline. Iterating again starts from the beginning."""
        self._stop()
        self._pipeline = None

    def _stop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close()

    def _batch(self, prepared: Prepared, images: torch.Tensor) -> Batch:
        plan = prepared.plan
        labels = torch.from_numpy(self._source.labels[prepared.indices].astype(np.int64, copy=False))
        if self._device.type == "cuda":
            labels = labels.pin_memory()
        return Batch(
            images=images.to(self._device, non_blocking=True),
            labels=labels.to(self._device, non_blocking=True),
            indices=prepared.indices,
            positions=plan.positions,
            epoch=plan.epoch,
            step=plan.step,
            valid=plan.valid,
            erasing=plan.erasing,
            bad=prepared.bad,
        )


class TrainLoader(_Loader):
    """Augmented batches, uint8 [b, 3, S, S], of the steps start_step to stop_step - 1, across epochs without a gap.

    samplers: one per gradient-accumulation pass of this process; a step's passes follow one another. image_size: S, px.
    decode_once: decodes an image once for all of its views in a batch. On CPUs this costs an image with a single view
    the decoding of the part outside its crop; pixels are the same. threads: for decoding, and on CPUs for making views;
    their number changes no pixel. hw_decoder_load: fraction of the images that a GPU's hardware decoders get. backend:
    what makes the views, as in `choose_backend`. patience: seconds for which a read is retried while the storage fails
    (runtime/patience.py).

    An image that cannot be read or decoded is replaced by another one, pixels and label, and is named in the batch's
    `bad`. No other sample changes.

    Iterating raises DataError where hardly any image is usable, StorageError where the storage goes on failing,
    RunError where DALI is missing, and RuntimeError where DALI fails. Iterating again starts at start_step again.
    """

    def __init__(
        self,
        source: Source,
        augment: Augment,
        image_size: int,
        samplers: Sequence[TrainSampler],
        seed: int,
        device: torch.device,
        threads: int,
        *,
        stop_step: int,
        start_step: int = 0,
        decode_once: bool = False,
        hw_decoder_load: float = HW_DECODER_LOAD,
        patience: float = PATIENCE_SECONDS,
        backend: str = "auto",
    ) -> None:
        windows = decodes_windows(augment, decode_once)
        super().__init__(source, device, patience, Substitutes(len(source), seed, device, windows))
        self._decode_once, self._hw_decoder_load = decode_once, hw_decoder_load
        self._augment, self._image_size, self._samplers, self._seed = augment, image_size, samplers, seed
        self._threads, self._steps, self._backend = threads, range(start_step, stop_step), backend

    def _plans(self) -> Iterator[Plan]:
        for step in self._steps:
            for sampler in self._samplers:
                chosen = sampler.batch(step)
                count, draw = len(chosen.indices), self._drawer(chosen)
                yield Plan(chosen.indices, chosen.positions, chosen.epoch, step, count, draw, self._erasing(chosen))

    def _erasing(self, chosen: StepIndices) -> EraseParams | None:
        if not self._augment.erase:
            return None
        place = self._seed, chosen.epoch, chosen.indices, chosen.views
        return draw_erasing(self._augment, self._image_size, *place)

    def _drawer(self, chosen: StepIndices) -> Callable[[list[NDArray[np.uint8]], NDArray[np.int32]], list[Any]]:
        def draw(encoded: list[NDArray[np.uint8]], sizes: NDArray[np.int32]) -> list[Any]:
            params = draw_views(
                self._augment, self._image_size, self._seed, chosen.epoch, chosen.indices, chosen.views, sizes
            )
            return train_inputs(self._augment, self._image_size, encoded, params, self._decode_once)

        return draw

    def _window(self) -> Window | None:
        if self._source.shard_edges is None:
            return None
        sampler, stop = self._samplers[0], self._steps.stop
        per_epoch = sampler.lane_views, sampler.repeats, sampler.steps_per_epoch
        return Window(self._source, sampler.order, sampler.node_lanes, *per_epoch, stop)

    def _build_pipeline(self) -> Pipeline:
        batch = len(self._samplers[0])
        return train_pipeline(
            self._augment, self._image_size, self._feed, batch, self._device, self._threads, self._decode_once,
            self._hw_decoder_load, self._backend,
        )  # fmt: skip


class EvalLoader(_Loader):
    """Every image of this rank once, in order, in batches uint8 [batch, 3, S, S]; repeats pad short batches.

    All ranks have the same number of batches; `valid` is 0 in a batch for which a rank has no images left. node: the
    ranks of this machine, by default this rank alone. Iterating raises DataError, naming the file, for an image that
    cannot be read or decoded, because without it the score would be of another data set. Other errors are as in
    TrainLoader.
    """

    def __init__(
        self,
        source: Source,
        data: Data,
        image_size: int,
        batch: int,
        device: torch.device,
        threads: int,
        rank: int = 0,
        world_size: int = 1,
        patience: float = PATIENCE_SECONDS,
        node: range | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(source, device, patience)
        self._data, self._image_size, self._size, self._threads = data, image_size, batch, threads
        self._backend = backend
        self._indices = eval_indices(len(source), rank, world_size, batch)
        self._node, self._world_size = node or range(rank, rank + 1), world_size

    def __len__(self) -> int:
        return len(self._indices)

    def _plans(self) -> Iterator[Plan]:
        repeated = 0
        for step, indices in enumerate(self._indices):
            repeated = indices[0] if len(indices) else repeated  # an image of this rank, whose shards are at hand
            padding = np.full(self._size - len(indices), repeated)
            yield Plan(np.concatenate((indices, padding)), None, 0, step, len(indices), self._draw)

    def _window(self) -> Window | None:
        edges = self._source.shard_edges
        if edges is None or not len(self._indices):
            return None
        order, steps = StoredOrder(edges, self._world_size), len(self._indices)
        return Window(self._source, order, self._node, self._size, repeats=1, steps=steps, stop=steps)

    def _draw(self, encoded: list[NDArray[np.uint8]], sizes: NDArray[np.int32]) -> list[Any]:
        return [encoded, eval_geometry(sizes, self._image_size, self._data.eval_crop_ratio)]

    def _build_pipeline(self) -> Pipeline:
        return eval_pipeline(
            self._image_size, self._feed, self._size, self._device, self._threads, self._data.eval_interpolation,
            self._backend,
        )  # fmt: skip
