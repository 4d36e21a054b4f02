"""Published results of training these models: accuracy and loss by epoch, hours, rates, memory. No torch.

reference_results.json holds one fact per line, each with its source and a note on its reliability. Authors' logs are of
raw weights and of one run each. Their epochs are numbered from 0 to the number of epochs, so a comparison should allow
for one epoch. Compare a run only with a run of the same schedule: at epoch 400 of 800 the learning rate is still high.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

What = Literal[
    "top1_by_epoch", "loss_by_epoch", "seconds_per_epoch", "hours", "train_images_per_second", "peak_memory_gib"
]

_CLASSES = {"ImageNet-1k": range(1_000, 1_001), "ImageNet-21k": range(10_000, 22_000)}


@dataclass(frozen=True)
class Fact:
    """One published series, or one number."""

    what: What
    unit: str
    trust: str
    """The kind of source: an author's log or table, a project's table, a benchmark's file, a user's report."""
    source: str
    """The source: owner/repository#thread, owner/repository@commit and file, or a paper's number."""
    recipe: str | None = None
    """The run's recipe in the table, if there is one."""
    model: str | None = None
    """The zoo's entry, or another model's name if the model is not in the zoo."""
    resolution: int | None = None
    """Side of the images, px."""
    value: float | None = None
    """The number; None for a series."""
    points: tuple[tuple[float, float], ...] = ()
    """[epoch, value] pairs of a series, in order."""
    data: str | None = None
    hardware: str | None = None
    precision: str | None = None
    batch: int | None = None
    """Images of an optimizer step, over all devices; for a benchmark, on its one device."""
    comment: str = ""

    def has_classes(self, count: int | None) -> bool:
        """Whether the data may have had `count` classes; releases and selections of ImageNet-21k differ."""
        return count in _CLASSES.get(self.data or "", ())


@cache
def reference_results() -> tuple[Fact, ...]:
    """All facts, in the order of the file."""
    content = json.loads(files("deit_fast.zoo").joinpath("reference_results.json").read_text(encoding="utf-8"))
    return tuple(
        Fact(**{**each, "points": tuple((epoch, value) for epoch, value in each.get("points", ()))}) for each in content
    )


def find_facts(
    *kinds: What, recipe: str | None = None, model: str | None = None, resolution: int | None = None
) -> list[Fact]:
    """The facts of these kinds, filtered by recipe, model and resolution where these are given."""
    asked = {"recipe": recipe, "model": model, "resolution": resolution}
    wanted = {key: value for key, value in asked.items() if value is not None}
    return [
        fact
        for fact in reference_results()
        if fact.what in kinds and all(getattr(fact, key) == value for key, value in wanted.items())
    ]


def find_curve(recipe: str) -> Fact | None:
    """The longest published series of top-1 by epoch of a recipe; None where there is none. It may cover the end alone.

    A series from an author takes precedence over a user's.
    """
    found = find_facts("top1_by_epoch", recipe=recipe)
    return max(found, key=lambda fact: (len(fact.points), fact.trust != "user report"), default=None)
