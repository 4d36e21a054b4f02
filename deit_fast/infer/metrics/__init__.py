"""The metrics of an evaluation, one module each: a sum over each batch, and the figures from the sum over all images.

A module with a METRIC is part of every evaluation, including those during training, because reading the logits once
more costs little beside the model. A metric that needs a file or much time has a function `build_metric` instead. Only
`deit-fast evaluate` uses such metrics, on request: --metric NAME=VALUE.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from inspect import signature
from types import FunctionType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deit_fast.data.sources.base import Source
from deit_fast.infer.ranking import are_finite, rank_classes
from deit_fast.runtime.discover import discover
from deit_fast.runtime.errors import RunError, suggest

Totals = NDArray[np.float64]


@dataclass(frozen=True)
class Predicted:
    """A batch for a metric: b images, possibly none, and the model's logits, without padding."""

    logits: Tensor
    """fp32 [b, K], on the device."""
    labels: Tensor
    """int64 [b], on the device."""
    indices: NDArray[np.int64]
    """[b], on the host: the images' indices in the data set."""
    images: Tensor
    """uint8 [b, 3, S, S], on the device: the model's input before normalisation."""

    @cached_property
    def finite(self) -> Tensor:
        """bool [b]: whether all logits of an image are finite."""
        return are_finite(self.logits)

    @cached_property
    def top5(self) -> Tensor:
        """The classes of the first five places (infer/ranking.py): int64 [b, 5], or [b, K] if K is less.

        They are -1, which is no label, for an image whose logits are not all finite.
        """
        return torch.where(self.finite[:, None], rank_classes(self.logits, 5), -1)

    @cached_property
    def most_likely(self) -> tuple[Tensor, Tensor]:
        """Confidences fp32 [b], in [0, 1], and classes int64 [b]: the largest softmax value, and the first place.

        They are 0 and -1 for an image whose logits are not all finite.
        """
        return torch.where(self.finite, self.logits.softmax(dim=1).amax(dim=1), 0), self.top5[:, 0]


@dataclass(frozen=True)
class Metric:
    """One or several figures, defined by two stateless functions."""

    sums: Callable[[Predicted], Tensor]
    """A batch's part of the sum: a tensor of the same shape for all batches, on the device. The function must not wait
    for the device, so it must not use `.item()`, `.cpu()` or boolean masks. Results are added up in fp64, over batches
    and then over processes."""
    values: Callable[[Totals, int], dict[str, float]]
    """The figures by name, from the sum (on the host, fp64) and the number of images, which is never 0."""


@cache
def find_metrics() -> dict[str, Metric]:
    """The metrics of every evaluation, by the names of their modules."""
    return discover(__name__, "METRIC", Metric)


def build_metrics(words: Iterable[str], source: Source) -> dict[str, Metric]:
    """The metrics of NAME=VALUE words, for the images of `source`.

    Raises RunError for a name that is unknown or belongs to a metric of every evaluation, and for a word without a
    value. A metric's own `build_metric(value, source)` raises RunError or DataError for a value that it cannot use.
    """
    known = discover(__name__, "build_metric", FunctionType)
    usage = {name: f"{name}={next(iter(signature(build).parameters)).upper()}" for name, build in known.items()}
    to_ask_for, built = f"to ask for: {', '.join(usage.values())}", {}
    for word in [words] if isinstance(words, str) else words:
        name, _, value = word.partition("=")
        if name in find_metrics():
            raise RunError(f"--metric {word}: {name} is always on; {to_ask_for}")
        if name not in known:
            always, near = f"always on: {', '.join(find_metrics())}", suggest(name, [*known, *find_metrics()])
            raise RunError(f"--metric {word}: unknown; {always}; {to_ask_for}{near}")
        if not value:
            raise RunError(f"--metric {word}: expected {usage[name]}")
        built[name] = known[name](value, source)
    return built
