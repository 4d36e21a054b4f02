"""`deit-fast report` and `deit-fast compare`: their parsers and functions. torch is imported late."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from deit_fast.cli.arguments import Parser, complain, local_path
from deit_fast.recipe.parse import read_val_fraction
from deit_fast.runtime.errors import DataError, RecipeError, RunError
from deit_fast.runtime.object_store import is_remote
from deit_fast.runtime.stdout import tell

if TYPE_CHECKING:
    from deit_fast.infer.evaluate import Scored
    from deit_fast.infer.pages.run_folder import RunFolder

EVALUATION = "evaluation"
"""The subfolder of a run with the results for its validation images."""


def add_report_parsers(subcommands: "argparse._SubParsersAction[Parser]") -> None:
    """Adds the commands `report` and `compare`."""
    report = subcommands.add_parser(
        "report",
        help="one page about a run: curves, recipe, images, confusions, worst mistakes, attention",
        epilog="Example: deit-fast report runs/small",
    )
    report.add_argument("run_folder", type=local_path, metavar="RUN", help="folder of a run, which may still go on")
    report.add_argument("--data", help="training and validation images; default: those that the run was given")
    report.add_argument("--val", help="validation images; default: as the run had them")
    report.add_argument("--out", type=local_path, metavar="FILE", help="default: RUN/report.html")
    report.add_argument("--no-images", action="store_true", help="only what needs neither images nor weights")
    report.set_defaults(run=run_report)
    compare = subcommands.add_parser(
        "compare",
        help="one page about several runs: curves, scores on the same images, recipes, speed",
        epilog="Example: deit-fast compare runs/small runs/small-400 --out compare.html",
    )
    compare.add_argument("run_folders", type=local_path, nargs="+", metavar="RUN", help="folders of runs")
    compare.add_argument(
        "--out", type=local_path, metavar="FILE", default=Path("compare.html"), help="default: %(default)s"
    )
    compare.set_defaults(run=run_compare)


def run_report(arguments: argparse.Namespace) -> int:
    """Writes the page, and prints its path; returns 0. Prints a line for each part that cannot be shown."""
    from deit_fast.infer.pages.report import write_run_page
    from deit_fast.infer.pages.run_folder import read_run

    run = read_run(arguments.run_folder)
    parts = [] if arguments.no_images else _image_parts(run, arguments.data, arguments.val)
    tell(write_run_page(run, parts, arguments.out))
    return 0


def run_compare(arguments: argparse.Namespace) -> int:
    """Writes the page, and prints its path; returns 0. Raises RunError for fewer than two runs."""
    if len(arguments.run_folders) < 2:
        raise RunError(f"compare {arguments.run_folders[0]}: expected two runs or more")
    from deit_fast.infer.pages.compare import paired_lines, write_comparison
    from deit_fast.infer.pages.evaluated import read_evaluated
    from deit_fast.infer.pages.run_folder import read_run

    runs = [read_run(folder) for folder in arguments.run_folders]
    evaluated = [read_evaluated(run.path / EVALUATION) for run in runs]
    page = write_comparison(runs, evaluated, arguments.out)
    tell(*paired_lines(runs, evaluated), page)
    return 0


def _image_parts(run: "RunFolder", data: str | None, val: str | None) -> list[str]:
    """The sections about the run's images: its data, samples, and an evaluation of its best weights."""
    from deit_fast.infer.pages import page
    from deit_fast.infer.pages.report import data_part
    from deit_fast.infer.pages.samples import training_samples
    from deit_fast.infer.scored_images import open_trained

    given = run.starts[-1] if run.starts else {}
    trained, labels = data or given.get("data"), None if data or val else given.get("labels")
    if trained is None:
        complain(f"{run.path}: nothing says which images it has: expected --data")
        return []
    held_out = _validation(run, given.get("val"), data, trained)
    own_labels = labels if held_out in (data, trained) else None  # else they are of other images
    parts, shown = [], []
    try:
        source = open_trained(run.path, trained, run.recipe.data.category, own_labels)
        shown.append(data_part(source, "training"))
        samples = training_samples(run.recipe, source)
        shown_samples = page.pictures(page.picture([each], words, name) for each, name, words in samples)
        parts.append(page.section("Inputs of the network", shown_samples))
    except (DataError, RunError, RecipeError) as error:
        complain(f"training images are not shown: {error}")
    try:
        scored, about = _score(run, val or held_out, labels)
        shown.append(data_part(scored.source, "validation"))
        parts += about
    except (DataError, RunError, RecipeError) as error:
        complain(f"confusions, mistakes and attention are not shown: {error}")
    if len(shown) < 2:
        _complain_of_relative(run.path, None if data else trained, None if data or val else held_out)
    return [page.section("Data", *shown), *parts]


def _complain_of_relative(run: Path, *places: str | None) -> None:
    """A line for each relative path among the places that a run keeps, as those of earlier versions did."""
    for place in dict.fromkeys(each for each in places if each and not is_remote(each) and not os.path.isabs(each)):
        complain(f"{run}: {place} is the relative path that the run was given; looked for in {os.getcwd()}: expected "
                 "--data")  # fmt: skip


def _validation(run: "RunFolder", given: str | None, data: str | None, trained: str) -> str | None:
    """The place of a run's validation images; None for images that the run held out and that its list names.

    given: the run's --val. data: the report's --data. trained: the training images.
    """
    from deit_fast.data.sources.image_list import LIST_NAME

    if (run.path / LIST_NAME).is_file():
        return data
    return trained if given is None or read_val_fraction(given) is not None else given


def _score(run: "RunFolder", val: str | None, labels: str | None) -> "tuple[Scored, list[str]]":
    """Evaluates the run's best weights on its validation images, and keeps the results; returns them with sections.

    val: place of the images; None for those that the run held out of its own data. Raises DataError, RunError,
    RecipeError.
    """
    from deit_fast.convert.locate import find_weights
    from deit_fast.convert.pretrained import open_weights
    from deit_fast.infer.evaluate import score_weights
    from deit_fast.infer.pages import page
    from deit_fast.infer.pages.evaluated import as_evaluated, attention, confusion, mistakes
    from deit_fast.infer.predict import build_loaded

    weights = open_weights(run.path)
    scored = score_weights(weights, run.path, val, report=run.path / EVALUATION, labels=labels)
    evaluated, notes = as_evaluated(scored), scored.result["notes"]
    low, high = scored.result["top1_interval"]
    words = f"{find_weights(run.path)}: top-1 {scored.result['top1']:.2f} % ({low:.1f} to {high:.1f})"
    said = (page.paragraph(note, soft=True) for note in notes)
    return scored, [
        page.section("Confusions", page.paragraph(words), *said, confusion(evaluated)),
        page.section("Most confident mistakes", mistakes(evaluated, scored.source)),
        page.section("Attention of the class token", attention(build_loaded(weights), evaluated, scored.source)),
    ]
