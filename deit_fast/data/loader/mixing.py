"""Tests whether shards are mixed well enough to shuffle blocks of them separately."""

import numpy as np
from numpy.typing import NDArray

_LOOKED_AT = 256  # shards, evenly spread: those of a set sorted by class differ everywhere
_SURE = 4.0  # standard deviations


def label_spread(labels: NDArray[np.integer], edges: NDArray[np.int64]) -> tuple[float, float]:
    """How much the shards' classes differ beyond the chance of a shuffle, and the certainty of that.

    labels: integers [N] below the number of classes. edges: int64 [shards + 1]. Returns Pearson's chi-square of shards
    against classes over its degrees of freedom, which is about 1 for shuffled images; and its place on a standard
    normal scale by Wilson and Hilferty's approximation ("The distribution of chi-square", PNAS 1931). If there are many
    shards, a sample of them is used, so that the time does not grow with the data set.
    """
    shards = np.flatnonzero(np.diff(edges))
    shards = shards[np.linspace(0, len(shards) - 1, min(len(shards), _LOOKED_AT)).astype(np.int64)]
    found = [np.bincount(np.asarray(labels[edges[shard] : edges[shard + 1]], np.int64)) for shard in shards.tolist()]
    width = max(map(len, found), default=0)
    total = np.zeros(width, np.int64)
    for counts in found:
        total[: len(counts)] += counts
    images, classes = int(total.sum()), int(np.count_nonzero(total))
    freedom = (len(shards) - 1) * (classes - 1)
    if freedom <= 0:
        return 1.0, 0.0
    share = 1 / np.maximum(total, 1)
    ratio = images * (sum((counts**2 @ share[: len(counts)]) / counts.sum() for counts in found) - 1) / freedom
    spread = 2 / (9 * freedom)
    return float(ratio), float((np.cbrt(ratio) - (1 - spread)) / np.sqrt(spread))


def is_sorted(labels: NDArray[np.integer], edges: NDArray[np.int64]) -> bool:
    """Whether the shards hold clearly different classes: at least twice the differences expected after a shuffle."""
    ratio, deviations = label_spread(labels, edges)
    return ratio > 2 and deviations > _SURE
