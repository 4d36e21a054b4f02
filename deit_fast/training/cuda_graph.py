"""A training step as CUDA graphs: its kernels are recorded once, and a step is then two launches for the host.

Experimental: no figure says yet where that is faster.

Forward and backward pass are one graph, the update is the other. In between the update runs once by itself: the tables
of the optimizer's kernels then hold the addresses of the recorded gradients, and recording it uploads nothing.

Dropout and stochastic depth draw what they would without: a graph reads seed and offset of torch's generator from the
device, and every replay begins by writing there what torch.manual_seed left (torch/csrc, CUDAGeneratorImpl).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deit_fast.runtime.errors import RunError, one_line
from deit_fast.training.step import TrainStep

EAGER_STEPS = 3  # before recording: libraries load, kernels compile and tables settle in the first


def record_step(step: TrainStep, settle: Callable[[], object] = lambda: None) -> None:
    """Puts graphs around both halves of a step of one process and one batch, in place.

    settle: called before each recording, has to leave no other thread that synchronises the device, as the loader's.
    Forward and backward pass begin by dropping the gradients; recorded, those of the graph stay for good. The hooks
    that the optimizer calls before its step, as the wait for a checkpoint's copy, run before each replay of the update.
    """
    optimizer = step.state.optimizer

    def call_hooks() -> None:
        for hook in list(optimizer._optimizer_step_pre_hooks.values()):
            hook(optimizer, (), {})

    passes, update = Recorded(step.forward_backward, EAGER_STEPS), Recorded(step.update, EAGER_STEPS + 1, call_hooks)
    passes.settle = update.settle = settle
    step.forward_backward, step.update = passes, update  # type: ignore[method-assign, assignment]


class Recorded:
    """A function of tensors that is called as it is for `eager_calls` times, then recorded, and replayed from there on.

    Its input, nested sequences of tensors and None, has the same shapes at every call: it is copied to where the graph
    reads. before: called on the host ahead of each replay, which runs no Python of the function. Raises RunError where
    the function cannot be recorded: the process can then no longer be relied on.
    """

    def __init__(
        self, function: Callable[[Any], Any], eager_calls: int, before: Callable[[], object] = lambda: None
    ) -> None:
        self._function, self._eager_calls, self._before = function, eager_calls, before
        self.settle: Callable[[], object] = lambda: None
        """Called ahead of the recording, which a thread that synchronises the device meanwhile would spoil."""
        self._input: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Any = None

    def __call__(self, given: Any) -> Any:
        """What the function gives; from the recording on always the same tensors, with the values of this call."""
        if self._input is None:
            self._input = _clone(given)
        else:
            _copy(self._input, given)
        if self._eager_calls:
            self._eager_calls -= 1
            return self._function(self._input)
        if self._graph is None:
            self.settle()
            self._graph = self._record()
        self._before()
        self._graph.replay()
        return self._result

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread is held to what may be recorded: the checkpoints' goes on meanwhile, and may wait for
            # streams and events. To wait for the whole device, as DALI may, is an error in any thread: see settle.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._result = self._function(self._input)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the step calls may refuse to be recorded
            first: BaseException = error  # ending a recording that failed is an error of its own
            while first.__context__ is not None:
                first = first.__context__
            reason = f"{type(first).__name__}: {one_line(first)}"[:200]
            raise RunError(f"run.cuda_graph=true: expected a step that CUDA can record ({reason})") from error
        return graph


def _clone(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list):
        return [_clone(each) for each in value]
    return value if value is None else type(value)(*map(_clone, value))


def _copy(target: Any, source: Any) -> None:
    """Writes the tensors of `source` over those of `target`. Raises ValueError where their shapes differ."""
    if isinstance(target, Tensor):
        if target.shape != source.shape:
            raise ValueError(f"Recorded: input of {tuple(source.shape)}: expected {tuple(target.shape)} as before")
        target.copy_(source, non_blocking=True)
    elif target is not None:
        for mine, given in zip(target, source, strict=True):
            _copy(mine, given)
