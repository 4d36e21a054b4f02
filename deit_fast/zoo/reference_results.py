"""What published runs of these models reached and took: accuracies and losses by epoch, hours, rates, memory. No torch.

The facts are in reference_results.json, one a line, each with its source and with how far it is to be trusted. Authors'
logs are of raw weights, one run each, numbered 0 to the number of epochs: allow one epoch. A run is to be compared with
one of the same schedule only: at epoch 400 of 800 the rate is still high.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

What = Literal[
    "top1_by_epoch", "loss_by_epoch", "seconds_per_epoch", "hours", "train_images_per_second", "peak_memory_gib"
]


@dataclass(frozen=True)
class Fact:
    """One published series, or one number."""

    what: What
    unit: str
    trust: str
    """Who says so: an author's log or table, a project's table, a benchmark's file, a user's report."""
    source: str
    """owner/repository#thread, owner/repository@commit and file, or the number of a paper."""
    recipe: str | None = None
    """The recipe of the table that the run had, where it had one."""
    model: str | None = None
    """The zoo's entry, or another model's name where no entry is that model."""
    resolution: int | None = None
    """px."""
    value: float | None = None
    """The number, or None of a series."""
    points: tuple[tuple[float, float], ...] = ()
    """[epoch, value] of a series, in order."""
    data: str | None = None
    hardware: str | None = None
    precision: str | None = None
    batch: int | None = None
    """Images of an optimizer step, over all devices; of a benchmark, on its one."""
    comment: str = ""


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
    """The facts of these kinds, of a recipe, a model or a resolution where one is given."""
    asked = {"recipe": recipe, "model": model, "resolution": resolution}
    wanted = {key: value for key, value in asked.items() if value is not None}
    return [
        fact
        for fact in reference_results()
        if fact.what in kinds and all(getattr(fact, key) == value for key, value in wanted.items())
    ]


def find_curve(recipe: str) -> Fact | None:
    """The longest published series of top-1 by epoch of a recipe, which may be its end alone; None where there is none.

    An author's comes before a user's.
    """
    found = find_facts("top1_by_epoch", recipe=recipe)
    return max(found, key=lambda fact: (len(fact.points), fact.trust != "user report"), default=None)
