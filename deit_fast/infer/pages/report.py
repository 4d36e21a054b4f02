"""The page of `deit-fast report` about one run: the contents of its folder and, if available, its images."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.identity import identify
from deit_fast.infer.pages import page
from deit_fast.infer.pages.charts import run_charts
from deit_fast.infer.pages.on_track import published_curve, standings_of
from deit_fast.infer.pages.run_folder import RunFolder, finite
from deit_fast.recipe.differences import differences
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import RECIPES
from deit_fast.runtime.durations import duration
from deit_fast.runtime.errors import printable
from deit_fast.runtime.log_sinks.json_lines import Record

REPORT = "report.html"
_NAMED_BARS = 60  # most classes for which each gets a bar
_BAD = 50
_STANDINGS = 12  # rows of the table of standings beside the published curve


def write_run_page(run: RunFolder, parts: Iterable[str] = (), path: Path | None = None) -> Path:
    """Writes report.html into the run's folder, or to `path`: facts from metrics, recipe and starts, then `parts`.

    parts: sections with images, as HTML. Returns the path of the page. Raises OSError.
    """
    recipe, model = run.recipe, run.recipe.model
    head = (
        f"<h1>{page.escape(recipe.name)}</h1>"
        f"<p class=soft>{page.escape(f'{model.name}, {model.image_size} px, {printable(str(run.path))}')}</p>"
    )
    sections = [
        head,
        page.tiles(headline(run)),
        page.section("Beside the published run", *published_part(run)),
        page.section("Curves", run_charts(run, published_curve(recipe))),
        page.section("Recipe", *recipe_part(recipe)),
        *parts,
        page.section("Images that could not be used", bad_part(run.path)),
        page.section("Machine and versions", *(start_part(start) for start in run.starts)),
    ]
    path = path or run.path / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    page.write_page(path, f"{recipe.name}: {run.path.name}", sections)
    return path


def headline(run: RunFolder) -> dict[str, tuple[str, str]]:
    """The most important figures, with a note each."""
    evaluations, trained = run.of_kind("eval"), run.of_kind("train")
    found: dict[str, tuple[str, str]] = {}
    scored = [each for each in evaluations if finite(each, "top1") is not None]
    if scored:
        best = max(scored, key=lambda each: each["top1"])
        note = f"{_when(run, scored[-1])}; best {best['top1']:.2f} %, {_when(run, best)}"
        found["top-1"] = f"{scored[-1]['top1']:.2f} %", note
        if (average := finite(scored[-1], "ema_top1")) is not None:
            found["top-1 of the average"] = f"{average:.2f} %", _when(run, scored[-1])
        if (top5 := finite(scored[-1], "top5")) is not None:
            found["top-5"] = f"{top5:.2f} %", _when(run, scored[-1])
    if trained:
        last = trained[-1]
        loss = finite(last, "loss")
        found["training loss"] = "not finite" if loss is None else f"{loss:.3f}", _when(run, last)
        rates = [rate for each in trained if (rate := finite(each, "images_per_second")) is not None]
        waits = [wait for each in trained if (wait := finite(each, "data_wait")) is not None]
        if rates:
            waited = f"; {100 * np.median(waits):.0f} % of the time spent waiting for data" if waits else ""
            found["images per second"] = f"{np.median(rates):,.0f}", f"median{waited}"
        if (memory := finite(last, "peak_memory_gib")) is not None:
            found["peak memory"] = f"{memory:.1f} GiB", "of one process"
    if run.result is not None and (minutes := finite(run.result, "minutes")) is not None:
        found["time"] = duration(60 * minutes), f"{run.result.get('step', 0):,} steps"
    elif trained:
        found["so far"] = _when(run, trained[-1]), f"of {run.recipe.schedule.epochs:g} epochs"
    return found


def published_part(run: RunFolder) -> list[str]:
    """The run's standings beside the published curve at its evaluations; empty without such a curve."""
    standings = standings_of(run)
    if not standings:
        return []
    places = np.unique(np.linspace(0, len(standings) - 1, _STANDINGS).round().astype(int)).tolist()
    shown = [standings[place] for place in places]
    rows = [(f"{each.epoch:g}", f"{each.published:.1f}", f"{each.here:.1f}", each.verdict) for each in shown]
    note = (
        f"Published: {standings[-1].source}, one run of the same schedule, raw weights. One epoch either way and the "
        "published curve's own scatter count as on track."
    )
    return [
        page.paragraph(str(standings[-1])),
        page.table(("epoch", "published, %", "here, %", ""), rows, (0, 1, 2)),
        page.paragraph(note, soft=True),
    ]


def recipe_part(recipe: Recipe) -> list[str]:
    """The recipe in words, and its differences from the table's row with the same name."""
    title, _, rest = recipe.description.partition("\n")
    about = page.paragraph(" ".join(rest.split()), soft=True) if rest else ""
    parts = [page.paragraph(title), about] if title else []
    row = RECIPES.get(recipe.name)
    if row is None:
        return [*parts, page.paragraph("The recipe is none of the table's; recipe.json has every value.")]
    changed = [(key, ours or "", theirs or "") for key, ours, theirs in differences(recipe, row)]
    if not changed:
        return [*parts, page.paragraph(f"Every value is that of {row.name} in the recipe table.")]
    return [*parts, page.table(("key", "here", f"in {row.name}"), changed)]


def data_part(source: Source, split: str) -> str:
    """Number of images and classes, their digest, and how the images are spread over the classes."""
    counts = np.bincount(source.labels, minlength=len(source.classes))
    spread = f"{counts.min():,} to {counts.max():,} in a class, median {np.median(counts):,.0f}"
    words = f"{split}: {len(source):,} images of {len(source.classes):,} classes, {spread}: {printable(source.place)}"
    parts = page.paragraph(words) + page.paragraph(f"digest {identify(source).digest}", soft=True)
    if len(counts) <= _NAMED_BARS:
        return parts + page.bars(dict(zip(source.classes, counts.tolist(), strict=True)))
    order = np.sort(counts)[::-1]
    places = np.linspace(0, len(order) - 1, 21).round().astype(int)
    return parts + page.bars({f"class no. {place + 1:,} by size": float(order[place]) for place in places.tolist()})


def bad_part(folder: Path) -> str:
    """The images that training could not use, with the reasons."""
    try:
        lines = (folder / "bad_files.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    rows = [tuple(line.split("\t", 1)) if "\t" in line else (line, "") for line in lines[:_BAD]]
    more = page.paragraph(f"and {len(lines) - _BAD:,} more in bad_files.txt") if len(lines) > _BAD else ""
    return page.table(("image", "why"), rows) + more if rows else ""


def start_part(start: dict[str, Any]) -> str:
    """One start of the run: time, command, and machine."""
    command = shlex.join(map(str, start.get("command", ())))
    versions = ", ".join(f"{name} {each}" for name, each in start.get("versions", {}).items())
    device = start.get("gpu") or start.get("cpu") or "?"
    cuda = f", CUDA {start['cuda']}" if start.get("cuda") else ""
    facts = [
        f"{start.get('time', '?')}, from step {start.get('step', 0):,}, "
        f"{start.get('processes', 1)} x {device} on {start.get('host', '?')}",
        f"Python {start.get('python', '?')}, {versions}{cuda}",
    ]
    if start.get("commit"):
        facts.append(f"commit {start['commit']}")
    return f"<pre>{page.escape(command)}</pre>" + "".join(page.paragraph(fact, soft=True) for fact in facts)


def _when(run: RunFolder, record: Record) -> str:
    epoch = run.epoch_of(record)
    return f"step {record['step']:,}" if epoch is None else f"epoch {epoch:.4g}"
