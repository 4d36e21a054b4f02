"""Distances between distributions, for tests of random numbers."""

import numpy as np
from scipy import stats


def kolmogorov_smirnov(first: np.ndarray, second: np.ndarray) -> float:
    """Largest distance of two empirical distribution functions, scaled so that one test in 1,000 passes 1.95."""
    values = np.sort(np.concatenate((first, second)))
    distance = np.abs(
        np.searchsorted(np.sort(first), values, "right") / len(first)
        - np.searchsorted(np.sort(second), values, "right") / len(second)
    ).max()
    return float(distance * np.sqrt(len(first) * len(second) / (len(first) + len(second))))


def uneven(counts: np.ndarray) -> float:
    """Pearson's chi-square of counts against even ones, in standard deviations from its mean."""
    expected = counts.mean()
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def same_shares(first: np.ndarray, second: np.ndarray) -> float:
    """p of the hypothesis that two samples of categories are one distribution."""
    top = int(max(first.max(), second.max())) + 1
    table = np.array([np.bincount(each, minlength=top) for each in (first, second)])
    return float(stats.chi2_contingency(table[:, table.sum(0) > 0], correction=False).pvalue)
