"""Prepares batches ahead of DALI: reads images, replaces bad ones, draws parameters. The left half of the ring."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.augment.erase import EraseParams
from deit_fast.data.loader.broken import describe_refusal, raise_culprit, without_name
from deit_fast.data.loader.substitute import Substitutes
from deit_fast.data.loader.window import Window
from deit_fast.data.sources.base import Source, read_image
from deit_fast.runtime.errors import DataError, RunError

_QUEUED = 3  # prepared batches that wait until DALI asks for them
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Plan:
    """A batch of b images before anything is read: `indices` and `positions` int64 [b], as in Batch."""

    indices: NDArray[np.int64]
    positions: NDArray[np.int64] | None
    epoch: int
    step: int
    valid: int
    draw: Callable[[list[NDArray[np.uint8]], NDArray[np.int32]], list[Any]]
    """(encoded images, sizes [b, 2]) -> the pipeline's inputs: the encoded images, geometry [b, 4], the rest."""
    erasing: EraseParams | None = None


class Prepared(NamedTuple):
    """A batch in the form in which DALI gets it."""

    plan: Plan
    indices: NDArray[np.int64]
    """[b]. The images that are used: those of the plan, or their substitutes."""
    inputs: list[Any]
    """The pipeline's inputs: encoded images, uint8 [bytes] each, then parameters [b, ...]."""
    bad: dict[int, str]
    """Unusable images, of the plan or among candidates for substitution, with the reasons."""


_Loaded = tuple[NDArray[np.uint8], tuple[int, int]] | DataError  # bytes, height and width


class Producer:
    """Prepares planned batches ahead in its own thread. Without substitutes, a bad image is an error.

    patience: seconds for which a read is retried while the storage fails; a longer failure is an error. window: is
    told, before a batch is read, which batches are in the making.
    """

    def __init__(
        self,
        source: Source,
        plans: Iterator[Plan],
        substitutes: Substitutes | None,
        patience: float,
        window: Window | None = None,
    ) -> None:
        self.in_flight: deque[Prepared] = deque()
        """Batches that DALI has received and the consumer has not, oldest first."""
        self.error: BaseException | None = None
        self._source, self._plans, self._substitutes, self._patience = source, plans, substitutes, patience
        self._window = window
        self._making: deque[int] = deque()  # steps of batches that are planned and not yet handed over
        self._failure: RunError | None = None
        self._gave_up = threading.Event()
        self._again: deque[Prepared] = deque()
        self._ended = False
        self._ready: queue.Queue[Prepared | None] = queue.Queue(_QUEUED)
        self._stopped = threading.Event()
        self._readers = ThreadPoolExecutor(source.readers, thread_name_prefix="deit-fast-read")
        self._thread = threading.Thread(target=self._work, name="deit-fast-loader", daemon=True)
        self._thread.start()

    def next_inputs(self) -> list[Any]:
        """The pipeline's feed: the next batch's encoded images and parameters.

        Raises StopIteration after the last batch.
        """
        prepared = self._again.popleft() if self._again else self._next_ready()
        if prepared is None:
            raise StopIteration
        self.in_flight.append(prepared)
        return prepared.inputs

    def hand_over(self) -> Prepared:
        """The oldest batch that DALI has; it belongs to the consumer from now on."""
        self._making.popleft()
        return self.in_flight.popleft()

    def recover(self, error: RuntimeError) -> None:
        """Recovers from an error of DALI: gives all batches in flight to a new pipeline, without refused images.

        Substitutes take the places of these images. Raises DataError without substitutes, and DALI's own error where no
        image explains it.
        """
        if self._substitutes is None:
            if self.in_flight:
                raise_culprit(self._source, self.in_flight[0].indices, self.in_flight[0].inputs[0], error)
            raise error
        for number, failed in enumerate(self.in_flight):
            refused = self._substitutes.refused(failed.inputs, np.arange(len(failed.indices)))
            if refused:
                self._substitutes.suspects.update(failed.indices[refused].tolist())
                self.in_flight[number] = self._prepare(failed.plan)
                break
        else:
            raise error
        self._again.extendleft(reversed(self.in_flight))
        self.in_flight.clear()

    def close(self) -> None:
        """Ends the threads after their present work; safe to call twice and from any thread."""
        self._stopped.set()
        self._gave_up.set()
        self._close_window()  # ends the readers' waits for shards
        self._thread.join()
        self._readers.shutdown()
        self._close_window()  # again, for what the thread told the window meanwhile

    def _close_window(self) -> None:
        if self._window is not None:
            self._window.close()

    def _next_ready(self) -> Prepared | None:
        while not (self._stopped.is_set() or self._ended):  # polls, so that closing from another thread ends the wait
            try:
                prepared = self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            self._ended = prepared is None
            return prepared
        return None

    def _work(self) -> None:
        try:
            for plan in self._plans:
                self._making.append(plan.step)
                if self._window is not None:
                    self._window.tell(self._making[0], plan.step)
                if not self._put(self._prepare(plan)):
                    return
        except BaseException as error:
            self.error = error
        self._put(None)

    def _prepare(self, plan: Plan) -> Prepared:
        indices, attempts = plan.indices.copy(), np.zeros(len(plan.indices), int)
        loaded: dict[int, _Loaded] = {}
        bad: dict[int, str] = {}
        while True:
            missing = [image for image in np.unique(indices).tolist() if image not in loaded]  # views are read once
            loaded.update(zip(missing, self._readers.map(self._load, missing), strict=True))
            found = [loaded[image] for image in indices.tolist()]
            unusable = {place: each for place, each in enumerate(found) if isinstance(each, DataError)}
            if not unusable:
                usable = [each for each in found if not isinstance(each, DataError)]
                encoded = [each[0] for each in usable]
                inputs = plan.draw(encoded, np.array([each[1] for each in usable], np.int32))
                unusable = self._refused(indices, inputs)
                if not unusable:
                    return Prepared(plan, indices, inputs, bad)
            if self._substitutes is None:
                raise next(iter(unusable.values()))
            for place, error in unusable.items():
                bad[int(indices[place])] = without_name(self._source, int(indices[place]), error)
                index, attempt = int(plan.indices[place]), int(attempts[place])
                indices[place] = self._substitutes.choose(plan.epoch, index, attempt, error)
                attempts[place] += 1

    def _load(self, index: int) -> _Loaded:
        if self._failure is not None:  # one reader has waited for the storage long enough
            raise self._failure
        try:
            encoded = read_image(self._source, index, self._patience, self._gave_up.wait)
            return self._source.prepare(index, encoded)
        except DataError as error:
            return error
        except RunError as error:  # a failure of the storage or of the store's shard says nothing about the image
            self._failure = self._failure or error  # the first failure, not those of reads that gave up because of it
            self._gave_up.set()
            raise self._failure from None

    def _refused(self, indices: NDArray[np.int64], inputs: list[Any]) -> dict[int, DataError]:
        """Places whose image DALI refuses, among images that it has refused before."""
        if self._substitutes is None or not self._substitutes.suspects:
            return {}
        places = np.flatnonzero(np.isin(indices, list(self._substitutes.suspects)))
        return {
            place: DataError(describe_refusal(self._source, int(indices[place]), inputs[0][place]))
            for place in self._substitutes.refused(inputs, places)
        }

    def _put(self, item: Prepared | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
