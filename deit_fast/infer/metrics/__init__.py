"""The figures of an evaluation, one module each: what a batch adds to a sum, and what the sum over all images says.

A module with a METRIC is part of every evaluation, a training's too: reading the logits once more takes next to no time
beside the model. One that needs a file or much time has a `build_metric` instead, and `deit-fast evaluate` alone knows
it, where it is asked for: --metric NAME=VALUE.
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
    """A batch as a metric sees it: b images, which may be none, and the model's logits. Padding is cut off."""

    logits: Tensor
    """fp32 [b, K], on the device."""
    labels: Tensor
    """int64 [b], on the device."""
    indices: NDArray[np.int64]
    """[b], on the host: the images' places in the data set."""
    images: Tensor
    """uint8 [b, 3, S, S], on the device: as the model got them, before normalisation."""

    @cached_property
    def finite(self) -> Tensor:
        """Whether all of an image's logits are finite: bool [b]."""
        return are_finite(self.logits)

    @cached_property
    def top5(self) -> Tensor:
        """The classes of the first five places (infer/ranking.py): int64 [b, 5], or [b, K] where K is less.

        -1, which is no label, where not all of an image's logits are finite.
        """
        return torch.where(self.finite[:, None], rank_classes(self.logits, 5), -1)

    @cached_property
    def most_likely(self) -> tuple[Tensor, Tensor]:
        """Confidences fp32 [b], in [0, 1], and classes int64 [b]: the softmax's largest value, and the first place.

        0 and -1 where not all of an image's logits are finite.
        """
        return torch.where(self.finite, self.logits.softmax(dim=1).amax(dim=1), 0), self.top5[:, 0]


@dataclass(frozen=True)
class Metric:
    """One figure or a few, as two functions without a state."""

    sums: Callable[[Predicted], Tensor]
    """What a batch adds: a tensor of one shape for all batches, on the device. It must not wait for the device, so no
    `.item()`, `.cpu()` or boolean mask. It is added up in fp64, over batches and then over processes."""
    values: Callable[[Totals, int], dict[str, float]]
    """The figures by name, from that sum (on the host, fp64) and the number of images, which is never 0."""


@cache
def find_metrics() -> dict[str, Metric]:
    """The metrics of every evaluation, by their modules' names."""
    return discover(__name__, "METRIC", Metric)


def build_metrics(words: Iterable[str], source: Source) -> dict[str, Metric]:
    """The metrics that NAME=VALUE words ask for, over the images of `source`. Raises RunError for a name that is
    unknown or always on, and without a value.

    A metric's own `build_metric(value, source)` raises RunError or DataError for a value that it cannot use.
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
