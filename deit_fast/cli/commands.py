"""The commands: a function for each, from parsed arguments to an exit status. torch and DALI are imported late."""

import argparse
import os
import sys
from pathlib import Path

from deit_fast.cli.show import list_as_text, recipe_as_text
from deit_fast.cli.zoo_table import zoo_as_json, zoo_as_text
from deit_fast.recipe.table import RECIPES, get_recipe
from deit_fast.runtime.errors import DataError, RecipeError, RunError, printable
from deit_fast.runtime.exit_status import ExitStatus
from deit_fast.runtime.files import json_text, write_json
from deit_fast.runtime.object_store import is_remote, write_object
from deit_fast.zoo import find_architecture, list_models


def run_train(arguments: argparse.Namespace) -> int:
    """`deit-fast train`: trains, and prints the result as JSON on the main process; 0."""
    recipe = get_recipe(arguments.recipe, arguments.overrides)
    recipe.check_teacher(arguments.teacher)
    resume = arguments.resume if arguments.resume not in ("auto", "never") else None
    _check_there(arguments.init if arguments.init != "none" else None, resume, arguments.teacher)
    from deit_fast.training.run import train

    result = train(
        recipe, arguments.data, arguments.out, arguments.val, arguments.init, arguments.resume, arguments.teacher,
        arguments.labels,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        print(json_text(result))
    return 0


def run_evaluate(arguments: argparse.Namespace) -> int:
    """`deit-fast evaluate`: prints the scores as JSON on the main process; 0."""
    _check_there(arguments.checkpoint)
    from deit_fast.infer.evaluate import evaluate_checkpoint

    scores = evaluate_checkpoint(
        arguments.checkpoint, arguments.data, arguments.overrides,
        arguments.ema, arguments.flip, arguments.metrics, arguments.report, arguments.labels, arguments.classes,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        for note in scores["notes"]:
            print(f"deit-fast: {arguments.checkpoint}: {note}", file=sys.stderr)
        print(json_text(scores))
        if is_remote(arguments.json):
            write_object(arguments.json, (json_text(scores) + "\n").encode())
        elif arguments.json:
            write_json(Path(arguments.json), scores)
    return 0


def run_convert(arguments: argparse.Namespace) -> int:
    """`deit-fast convert`: writes a checkpoint in another format, and prints what changed; 0."""
    _check_there(arguments.source)
    from deit_fast.convert.export import export_checkpoint
    from deit_fast.convert.fit import format_changes
    from deit_fast.convert.locate import fetch_weights

    written = export_checkpoint(
        fetch_weights(arguments.source), arguments.destination, arguments.format, arguments.overrides, arguments.ema
    )
    for line in written.said:
        print(f"deit-fast: {line}", file=sys.stderr)
    print(f"{written.path}: {written.format}, from {written.source}", *format_changes(written.changes), sep="\n")
    print(f"max difference of logits {written.difference:.1g}", *written.notes, sep="\n")
    return 0


def run_predict(arguments: argparse.Namespace) -> int:
    """`deit-fast predict`: prints the classes of images; INCOMPLETE where one could not be read."""
    _check_there(arguments.checkpoint)
    from deit_fast.infer.images import find_images
    from deit_fast.infer.precision import mirrored_notes
    from deit_fast.infer.predict import load_model, predict, print_predictions
    from deit_fast.runtime.waiting import share_cores

    images = find_images(arguments.images)
    model = load_model(arguments.checkpoint, arguments.ema)
    for note in (*model.notes, *mirrored_notes(model.recipe, arguments.flip)):
        print(f"deit-fast: {note}", file=sys.stderr)
    with share_cores(model.device):
        found = predict(
            model, images, arguments.top, batch=arguments.batch, flip=arguments.flip, allow_urls=arguments.allow_urls
        )
    print_predictions(found, arguments.kind)
    unread = [each.error for each in found if each.error]
    for error in unread:
        complain(error)
    return ExitStatus.INCOMPLETE if unread else 0


def run_show(arguments: argparse.Namespace) -> int:
    """`deit-fast show`: prints the recipe table or one recipe; 0.

    Raises RecipeError for --images without a recipe or with --json.
    """
    if arguments.images is not None and (arguments.recipe is None or arguments.json):
        raise RecipeError(f"--images {arguments.images}: expected with a recipe's name and without --json")
    if arguments.recipe is None:
        table = {name: recipe.model_dump(mode="json") for name, recipe in RECIPES.items()}
        return _print_page(json_text(table) if arguments.json else list_as_text())
    recipe = get_recipe(arguments.recipe, arguments.overrides)
    content = recipe.model_dump(mode="json")
    return _print_page(json_text(content) if arguments.json else recipe_as_text(recipe, arguments.images))


def run_zoo(arguments: argparse.Namespace) -> int:
    """`deit-fast zoo`: prints the zoo's rows that match a pattern; 0. Raises RecipeError where none does."""
    names = list_models(arguments.pattern)
    if not names:
        find_architecture(arguments.pattern)  # says which name is near
    return _print_page(zoo_as_json(names) if arguments.json else zoo_as_text(names))


def run_manifest(arguments: argparse.Namespace) -> int:
    """`deit-fast manifest`: prints the YAML of a component's job; 0. A wrong word ends the process with REFUSED."""
    from deit_fast.components.manifest import render

    print(render(arguments.stage, arguments.words), end="")
    return 0


def run_data_demo(arguments: argparse.Namespace) -> int:
    """`deit-fast data demo`: writes the demo's digits, and prints their folder; 0."""
    from deit_fast.data.tools.demo import write_demo

    print(write_demo(arguments.folder))
    return 0


def run_data_preview(arguments: argparse.Namespace) -> int:
    """`deit-fast data preview`: writes a picture of what training sees; 0.

    Raises RunError for an --out that does not end in .png.
    """
    recipe = get_recipe(arguments.recipe, arguments.overrides)
    if arguments.out.suffix.lower() != ".png":
        raise RunError(f"--out {arguments.out}: expected a name that ends in .png")
    from deit_fast.data.sources.open import open_source
    from deit_fast.data.tools.preview import preview

    source = open_source(arguments.data, "train", recipe.data.category)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    preview(recipe, source, arguments.out)
    print(arguments.out)
    return 0


def run_data_check(arguments: argparse.Namespace) -> int:
    """`deit-fast data check`: prints a report of each split; INCOMPLETE where an image could not be used."""
    from deit_fast.data.sources.classes import match_classes
    from deit_fast.data.sources.open import open_splits
    from deit_fast.data.tools.check import check_source, open_to_check, write_bad

    sources = open_splits(arguments.data, arguments.labels, open_to_check)
    bad = []
    for split, source in sources.items():
        checked = check_source(source, arguments.threads)
        print(f"{source.place}, {split}: {checked.as_text()}", flush=True)
        bad += checked.bad
    if len(sources) > 1:
        try:
            match_classes(sources["val"], sources["train"].classes, f"{arguments.data}'s classes")
        except DataError as error:
            print(error, flush=True)
            bad.append((printable(sources["val"].uri), str(error).removeprefix(f"{sources['val'].uri}: ")))
    if arguments.out:
        write_bad(arguments.out, bad)
    return ExitStatus.INCOMPLETE if bad else 0


def run_data_shard(arguments: argparse.Namespace) -> int:
    """`deit-fast data shard`: writes tar shards of each split, and prints how many; 0."""
    from deit_fast.data.sources.classes import match_classes
    from deit_fast.data.sources.open import open_splits
    from deit_fast.data.tools.write_shards import describe_effect, write_shards

    sources = open_splits(arguments.source, arguments.labels)
    if len(sources) > 1:
        match_classes(sources["val"], sources["train"].classes, f"{arguments.source}'s classes")
        sources["val"].classes = sources["train"].classes  # one classes.txt, also where validation only has numbers
    if arguments.size is not None:
        print(describe_effect(next(iter(sources.values())), arguments.size), flush=True)
    for split, source in sources.items():
        written = write_shards(
            source, arguments.folder, split, arguments.size, arguments.per_shard, arguments.workers
        )  # fmt: skip
        print(
            f"{split}: {written.images} images in {written.shards} shards of {arguments.folder}; "
            f"{written.resized} resized, {written.kept_shards} shards were there already"
        )
    return 0


def run_data_index(arguments: argparse.Namespace) -> int:
    """`deit-fast data index`: makes the index of tar shards, prints what it holds, and what training needs; 0."""
    from deit_fast.data.loader.streaming_plan import describe_plan
    from deit_fast.data.tools.index import index_shards

    found = index_shards(arguments.data, arguments.out)
    for indexed in found:
        print(indexed.as_text(), flush=True)
    if arguments.plan is not None:
        sizes = [shard.bytes for shard in found[0].index.shards]  # of training, where there is some
        print("", *describe_plan(arguments.data, sizes, len(found[0].index.rows), arguments.plan), sep="\n", flush=True)
    return 0


def _check_there(*checkpoints: str | Path | None) -> None:
    """Raises RunError for one that is missing, before torch is imported; what it is, its reader says."""
    for path in checkpoints:
        if path is not None and not is_remote(path) and not Path(path).exists():
            raise RunError(f"{path}: no such checkpoint")


def complain(message: object) -> None:
    """Prints the message's lines to stderr, with the rank where there are several processes."""
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    for line in str(message).split("\n"):
        print(f"deit-fast: {rank}{printable(line)}", file=sys.stderr)


def _print_page(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `deit-fast show NAME | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush complains
    return 0
