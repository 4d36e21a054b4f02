"""A training step as CUDA graphs: its kernels are recorded once, and a step is then two launches for the host.

Forward and backward pass are one graph, the update is the other. In between the update runs once by itself: the tables
of the optimizer's kernels then hold the addresses of the recorded gradients, and recording it uploads nothing.

Dropout and stochastic depth draw what they would without: a graph reads seed and offset of torch's generator from the
device, and every replay begins by writing there what torch.manual_seed left (torch/csrc, CUDAGeneratorImpl).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deit_fast.runtime.errors import RecipeError, RunError, one_line
from deit_fast.runtime.world import World

EAGER_STEPS = 3  # before recording: libraries load, kernels compile and tables settle in the first


def check_capture(world: World) -> None:
    """Raises RecipeError where run.cuda_graph=true cannot be."""
    if world.device.type != "cuda":
        raise RecipeError(f"run.cuda_graph=true: expected an NVIDIA GPU, got {world.device.type}")
    if world.size > 1:
        raise RecipeError(f"run.cuda_graph=true: expected one process, got {world.size}")


class StepGraphs:
    """Calls `backward(batch)`, which leaves gradients and gives the loss [], and `update(loss)`, as one training step.

    Both work on tensors of one shape and place, but for the batch: its tensors are copied to where the graphs read.
    zero_grad drops the gradients of the steps that are not recorded yet; those of the graph stay for good.
    Raises RunError where a step cannot be recorded: the process can then no longer be relied on.
    """

    def __init__(
        self, backward: Callable[[Any], Tensor], update: Callable[[Tensor], None], zero_grad: Callable[[], None]
    ) -> None:
        self._batch: Any = None
        self._loss = torch.zeros(())

        def compute_gradients() -> Tensor:
            zero_grad()
            return backward(self._batch)

        self._backward = _Recorded(compute_gradients, EAGER_STEPS)
        self._update = _Recorded(lambda: update(self._loss), EAGER_STEPS + 1)

    def __call__(self, batch: Any) -> None:
        """One step with a batch: nested tuples of tensors and None, of the same shapes every time."""
        if self._batch is None:
            self._batch = _clone(batch)
        else:
            _copy(self._batch, batch)
        self._loss = self._backward()
        self._update()


class _Recorded:
    """A function that is called as it is for some times, then recorded, and replayed from there on."""

    def __init__(self, function: Callable[[], Any], eager_calls: int) -> None:
        self._function, self._eager_calls = function, eager_calls
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Any = None

    def __call__(self) -> Any:
        """What the function gives; from the recording on always the same tensors, with the values of this call."""
        if self._eager_calls:
            self._eager_calls -= 1
            return self._function()
        if self._graph is None:
            self._graph = self._record()
        self._graph.replay()
        return self._result

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread is held to what may be recorded: the loader's and the checkpoints' go on meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._result = self._function()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the step calls may refuse to be recorded
            first: BaseException = error  # ending a recording that failed is an error of its own
            while first.__context__ is not None:
                first = first.__context__
            reason = f"{type(first).__name__}: {one_line(first)}"[:200]
            raise RunError(f"run.cuda_graph=true: expected a step that CUDA can record ({reason})") from error
        return graph


def _clone(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.clone()
    return batch if batch is None else type(batch)(*map(_clone, batch))


def _copy(target: Any, source: Any) -> None:
    """Writes the tensors of `source` over those of `target`. Raises ValueError where their shapes differ."""
    if isinstance(target, Tensor):
        if target.shape != source.shape:
            raise ValueError(f"StepGraphs: batch of {tuple(source.shape)}: expected {tuple(target.shape)} as before")
        target.copy_(source, non_blocking=True)
    elif target is not None:
        for mine, given in zip(target, source, strict=True):
            _copy(mine, given)
