"""Compares a run with the published curve of its recipe.

Authors' logs are of raw weights and of one run, and number epochs from 0 to the number of epochs. The tolerance is
therefore one epoch in either direction, and twice the scatter of the published curve itself. Only runs of the same
length, and on data with the published number of classes, are compared.
"""

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import Any

from deit_fast.infer.pages.run_folder import RunFolder, finite
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import RECIPES
from deit_fast.zoo.reference_results import Fact, find_curve

_SIGMAS = (
    2 * 2**0.5 / 0.826
)  # two deviations of a difference of two noisy values, per median of |p[i] - its neighbours|


@dataclass(frozen=True)
class Standing:
    """A run's top-1 beside the published top-1."""

    epoch: float
    here: float
    """Top-1 of the raw weights, %."""
    published: float
    """Top-1 of the published curve at the same epoch, %."""
    verdict: str
    """"on track", "ahead" or "behind"."""
    source: str

    def __str__(self) -> str:
        gap = f" by {abs(self.here - self.published):.1f} points" if self.verdict != "on track" else ""
        return f"epoch {self.epoch:g}: {self.published:.1f} % published, {self.here:.1f} % here, {self.verdict}{gap}"


def published_curve(recipe: Recipe) -> Fact | None:
    """The published top-1 by epoch with which a run of this recipe can be compared; None where there is none.

    The run has to have the table's model, resolution and number of epochs. Its number of classes has to be the table's,
    or that of the published data where the table leaves it to the data. Other values of the recipe may differ, since a
    comparison is meant to show their effect.
    """
    row, fact = RECIPES.get(recipe.name), find_curve(recipe.name)
    if row is None or fact is None or len(fact.points) < 3:
        return None
    model, theirs = recipe.model, row.model
    same = (model.name, model.image_size) == (theirs.name, theirs.image_size)
    same = same and recipe.schedule.epochs == row.schedule.epochs == fact.points[-1][0]
    same = same and (model.num_classes in (None, theirs.num_classes) or fact.has_classes(model.num_classes))
    return fact if same else None


def standing(recipe: Recipe, epoch: float | None, top1: Any) -> Standing | None:
    """The standing of a run after `epoch` epochs with `top1` %; None where the curve does not cover that epoch."""
    fact = published_curve(recipe)
    if fact is None or epoch is None or not isinstance(top1, int | float) or not math.isfinite(top1):
        return None
    first, last = fact.points[0][0], fact.points[-1][0]
    if not first <= epoch <= last:
        return None
    around = [_at(fact, min(max(each, first), last)) for each in (epoch - 1, epoch, epoch + 1)]
    room = _SIGMAS * _scatter(fact)
    verdict = "ahead" if top1 > max(around) + room else "behind" if top1 < min(around) - room else "on track"
    return Standing(epoch, float(top1), around[1], verdict, fact.source)


def standings_of(run: RunFolder) -> list[Standing]:
    """The standings at all evaluations of a run that the published curve covers."""
    found = (standing(run.recipe, run.epoch_of(each), finite(each, "top1")) for each in run.of_kind("eval"))
    return [each for each in found if each is not None]


def _at(fact: Fact, epoch: float) -> float:
    """The series at an epoch, interpolated linearly."""
    points = fact.points
    for (left, low), (right, high) in itertools.pairwise(points):
        if left <= epoch <= right:
            return low + (high - low) * (epoch - left) / (right - left)
    return points[-1][1]


def _scatter(fact: Fact) -> float:
    """Median distance of a point from the mean of its neighbours, %, over the second half, where the curve is flat."""
    values = [value for _, value in fact.points][len(fact.points) // 2 - 1 :]
    return statistics.median(abs(b - (a + c) / 2) for a, b, c in zip(values, values[1:], values[2:], strict=False))
