"""The page of `deit-fast compare`: curves, scores with paired intervals, recipes and speed of several runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deit_fast.infer.pages import page
from deit_fast.infer.pages.charts import compared_charts
from deit_fast.infer.pages.evaluated import Evaluated
from deit_fast.infer.pages.on_track import published_curve, standings_of
from deit_fast.infer.pages.run_folder import RunFolder, finite
from deit_fast.infer.report import wilson_interval
from deit_fast.recipe.differences import as_word
from deit_fast.recipe.schema import SECTIONS
from deit_fast.runtime.durations import duration
from deit_fast.runtime.errors import printable

_SCORES = "top1", "ema_top1", "top5", "loss"
_Z = 1.959963984540054  # the normal distribution's 97.5th percentile


@dataclass(frozen=True)
class Paired:
    """Two models on the same N images."""

    gained: int
    """Number of images that only the second model classifies correctly."""
    lost: int
    """Number of images that only the first model classifies correctly."""
    images: int

    @property
    def difference(self) -> float:
        """Top-1 of the second model minus that of the first, points."""
        return 100 * (self.gained - self.lost) / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference, points: Agresti and Min's for matched pairs (2005), half a pair added."""
        gained, lost, images = self.gained + 0.5, self.lost + 0.5, self.images + 2
        centre = (gained - lost) / images
        half = _Z * math.sqrt(max(gained + lost - (gained - lost) ** 2 / images, 0)) / images
        return 100 * (centre - half), 100 * (centre + half)

    @property
    def p_value(self) -> float:
        """McNemar's exact test (1947), two-sided: probability of so uneven a split by chance."""
        split, least = self.gained + self.lost, min(self.gained, self.lost)
        if not split:
            return 1.0
        tail = sum(math.exp(_log_choose(split, each) - split * math.log(2)) for each in range(least + 1))
        return min(1.0, 2 * tail)


def paired(first: Evaluated, second: Evaluated) -> Paired | None:
    """The comparison of two evaluations; None where their images, or the classes of these, differ."""
    if first.digest != second.digest or len(first.labels) != len(second.labels) or first.classes != second.classes:
        return None
    right = [each.outcomes.predictions == each.labels for each in (first, second)]
    gained, lost = int((~right[0] & right[1]).sum()), int((right[0] & ~right[1]).sum())
    return Paired(gained, lost, len(first.labels))


def write_comparison(runs: Sequence[RunFolder], evaluated: Sequence[Evaluated | None], path: Path) -> Path:
    """Writes the page that compares two or more runs; the others are compared with the first."""
    names = short_names([run.path for run in runs])
    published = next((fact for run in runs if (fact := published_curve(run.recipe)) is not None), None)
    sections = [
        f"<h1>{page.escape(' / '.join(names))}</h1>",
        page.section("Scores", *scores_part(runs, names, evaluated)),
        page.section("Curves", compared_charts(runs, names, published)),
        page.section("Beside the published run", published_part(runs, names)),
        page.section("Recipes", recipes_part(runs, names)),
        page.section("Speed", speed_part(runs, names)),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    page.write_page(path, " / ".join(names), sections)
    return path


def scores_part(runs: Sequence[RunFolder], names: Sequence[str], evaluated: Sequence[Evaluated | None]) -> list[str]:
    """The last scores of each run, and paired differences for runs with results on the same images."""
    rows = []
    for run, name, found in zip(runs, names, evaluated, strict=True):
        scored = [each for each in run.of_kind("eval") if finite(each, "top1") is not None]
        last = scored[-1] if scored else {}
        shown = [f"{last[key]:.2f}" if finite(last, key) is not None else "" for key in _SCORES]
        interval = ""
        if found is not None:
            hits = int((found.outcomes.predictions == found.labels).sum())
            low, high = wilson_interval(hits, len(found.labels))
            interval = f"{100 * hits / len(found.labels):.2f} ({low:.1f} to {high:.1f})"
        best = f"{max(each['top1'] for each in scored):.2f}" if scored else ""
        rows.append((name, run.recipe.model.name, f"{run.recipe.model.image_size}", *shown, best, interval))
    heads = ("run", "model", "px", "top-1, %", "average", "top-5", "loss", "best top-1", "evaluated, 95 %")
    parts = [page.table(heads, rows, range(2, 9))]
    if (pairs := paired_rows(names, evaluated)) is not None:
        parts += [page.paragraph(f"On the same images, against {names[0]}:"), pairs]
    missing = [name for name, found in zip(names, evaluated, strict=True) if found is None]
    if missing:
        parts.append(page.paragraph(f"For paired intervals: deit-fast report {' '.join(missing)}", soft=True))
    return parts


def paired_rows(names: Sequence[str], evaluated: Sequence[Evaluated | None]) -> str | None:
    """A table of paired differences from the first run; None if no other run has results on the same images."""
    first, *others = evaluated
    rows = []
    for name, found in zip(names[1:], others, strict=True):
        pair = paired(first, found) if first is not None and found is not None else None
        if pair is not None:
            low, high = pair.interval
            gap = f"{pair.difference:+.2f}", f"{low:+.2f} to {high:+.2f}"
            rows.append((name, *gap, f"{pair.gained:,}", f"{pair.lost:,}", f"{pair.p_value:.2g}"))
    heads = ("run", "top-1 difference, points", "95 % interval", "right alone", "wrong alone", "McNemar's p")
    return page.table(heads, rows, range(1, 6)) if rows else None


def paired_lines(runs: Sequence[RunFolder], evaluated: Sequence[Evaluated | None]) -> list[str]:
    """A console line for each run: its last top-1, and its paired difference from the first run."""
    lines = []
    for name, run, found in zip(short_names([run.path for run in runs]), runs, evaluated, strict=True):
        scored = [each["top1"] for each in run.of_kind("eval") if finite(each, "top1") is not None]
        line = [name, f"top-1 {scored[-1]:.2f} %" if scored else "not evaluated"]
        pair = paired(evaluated[0], found) if evaluated[0] is not None and found is not None else None
        if run is not runs[0] and pair is not None:
            low, high = pair.interval
            line.append(f"{pair.difference:+.2f} ({low:+.2f} to {high:+.2f}) on the same images, p {pair.p_value:.2g}")
        lines.append("  ".join(line))
    return lines


def published_part(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """Each run's standing beside the published curve at its last evaluation; "" if no run has a curve."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        if found := standings_of(run):
            rows.append((name, str(found[-1])))
    return page.table(("run", "last evaluation"), rows) if rows else ""


def recipes_part(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """The recipe keys with different values in the runs."""
    values = [
        {f"{section}.{key}": as_word(value) for section in SECTIONS
         for key, value in getattr(run.recipe, section).model_dump(mode="json").items()}
        for run in runs
    ]  # fmt: skip
    keys = list(dict.fromkeys(key for each in values for key in each))
    rows = [(key, *shown) for key in keys if len(set(shown := [each.get(key, "") for each in values])) > 1]
    rows = [("name", *(run.recipe.name for run in runs)), *rows] if len({run.recipe.name for run in runs}) > 1 else rows
    return page.table(("key", *names), rows) if rows else page.paragraph("The same in every value.")


def speed_part(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """Medians over the lines of metrics, and the total time."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        trained = run.of_kind("train")
        medians = []
        for key, shape in (("images_per_second", "{:,.0f}"), ("data_wait", "{:.2f}"), ("peak_memory_gib", "{:.1f}")):
            found = [value for each in trained if (value := finite(each, key)) is not None]
            medians.append(shape.format(np.median(found)) if found else "")
        minutes = finite(run.result, "minutes") if run.result is not None else None
        start = run.starts[-1] if run.starts else {}
        device = start.get("gpu") or start.get("cpu") or ""
        rows.append(
            (name, *medians, "" if minutes is None else duration(60 * minutes), f"{start.get('processes', '')}", device)
        )
    heads = ("run", "images/s", "data wait, share", "memory, GiB", "time", "processes", "device")
    return page.table(heads, rows, range(1, 6))


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last components of the paths, as many as are needed to tell the paths apart."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = [printable("/".join(path.parts[-depth:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{printable(str(path))} ({number})" for number, path in enumerate(paths, 1)]


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
