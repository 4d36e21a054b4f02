"""A run's metrics as series for charts.js, together with the published curve."""

from collections.abc import Sequence
from typing import Any

from deit_fast.infer.pages.on_track import published_curve
from deit_fast.infer.pages.page import chart, charts
from deit_fast.infer.pages.run_folder import RunFolder, finite
from deit_fast.zoo.reference_results import Fact

_POINTS = 1500  # most points of a line: more than a screen has columns
_COLORS = 6

Series = dict[str, Any]

PANELS: tuple[tuple[str, str, bool, tuple[tuple[str, str, str], ...]], ...] = (
    ("Loss", "", False, (("train", "loss", "training"), ("eval", "loss", "evaluation"))),
    ("Accuracy", " %", False, (("eval", "top1", "top-1"), ("eval", "ema_top1", "top-1 of the average"),
                               ("eval", "top5", "top-5"))),
    ("Learning rate", "", True, (("train", "lr", "learning rate"),)),
    ("Gradient norm", "", True, (("train", "grad_norm", "gradient norm"),)),
    ("Images per second", "", True, (("train", "images_per_second", "images/s"),)),
    ("Waiting for data", "", True, (("train", "data_wait", "share of the time"),)),
    ("Peak memory, GiB", "", True, (("train", "peak_memory_gib", "GiB"),)),
)  # fmt: skip
"""Each chart: title, unit, whether the y axis starts at 0, and its lines (kind of record, key, name)."""


def run_charts(run: RunFolder, published: Fact | None) -> str:
    """The charts of one run; the accuracy's chart also shows the published top-1."""
    parts = []
    for title, unit, zero, lines in PANELS:
        series = [
            line_of(run, kind, key, name, place) for place, (kind, key, name) in enumerate(lines)
        ]  # fmt: skip
        if title == "Accuracy" and published is not None and any(each["points"] for each in series):
            series.append(published_line(published, run.steps_per_epoch))
        parts.append(chart(title, [each for each in series if each["points"]], unit, zero))
    return charts(part for part in parts if part)


def compared_charts(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """The charts of several runs in common panels, with a colour for each run, and each published curve once."""
    parts = []
    curves = {fact: run for run in runs[::-1] if (fact := published_curve(run.recipe)) is not None}
    for title, unit, zero, lines in PANELS:
        for kind, key, name in lines:
            series = [line_of(run, kind, key, label, place)
                      for place, (run, label) in enumerate(zip(runs, names, strict=True))]  # fmt: skip
            if key == "top1" and any(each["points"] for each in series):
                series += [published_line(fact, run.steps_per_epoch, run.recipe.name if len(curves) > 1 else "")
                           for fact, run in curves.items()]  # fmt: skip
            shown = f"{title}: {name}" if len(lines) > 1 else title
            parts.append(chart(shown, [each for each in series if each["points"]], unit, zero))
    return charts(part for part in parts if part)


def line_of(run: RunFolder, kind: str, key: str, name: str, color: int) -> Series:
    """One figure of a run over its steps and epochs, without records that lack a finite number for it."""
    points = [
        [record["step"], None if (epoch := run.epoch_of(record)) is None else round(epoch, 4), value]
        for record in run.of_kind(kind)
        if (value := finite(record, key)) is not None
    ]
    return {"name": name, "color": f"s{color % _COLORS}", "dashed": color >= _COLORS, "points": thinned(points)}


def published_line(fact: Fact, steps_per_epoch: float | None, recipe: str = "") -> Series:
    """A published series by epoch; its steps are those at this run's epochs. recipe: named where there are several."""
    points = [[None if steps_per_epoch is None else round(epoch * steps_per_epoch), epoch, value]
              for epoch, value in fact.points]  # fmt: skip
    return {
        "name": f"published top-1 {recipe}".rstrip(),
        "color": "published",
        "dashed": True,
        "points": thinned(points),
    }


def thinned(points: list[list[Any]]) -> list[list[Any]]:
    """At most _POINTS points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= _POINTS:
        return points
    kept, stretches = [points[0]], _POINTS // 2 - 1
    inner = points[1:-1]
    for place in range(stretches):
        part = inner[place * len(inner) // stretches : (place + 1) * len(inner) // stretches]
        if part:
            low, high = (choose(range(len(part)), key=lambda each: part[each][2]) for choose in (min, max))
            kept += [part[each] for each in sorted({low, high})]
    return [*kept, points[-1]]
