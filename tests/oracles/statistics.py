"""Distances between distributions, for tests of random numbers."""

import numpy as np
from scipy import stats


def same_shares(first: np.ndarray, second: np.ndarray) -> float:
    """p-value of the hypothesis that two samples of categories have the same distribution."""
    top = int(max(first.max(), second.max())) + 1
    table = np.array([np.bincount(each, minlength=top) for each in (first, second)])
    return float(stats.chi2_contingency(table[:, table.sum(0) > 0], correction=False).pvalue)
