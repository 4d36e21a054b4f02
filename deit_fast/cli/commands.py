"""The commands: one function each, from parsed arguments to an exit status. torch and DALI are imported inside them."""

import argparse
import os
import sys
from pathlib import Path

from deit_fast.cli.arguments import complain
from deit_fast.cli.show import changes_as_text, list_as_text, recipe_as_text
from deit_fast.cli.zoo_table import zoo_as_json, zoo_as_text
from deit_fast.recipe.table import RECIPES, get_recipe
from deit_fast.runtime.errors import RecipeError, RunError
from deit_fast.runtime.exit_status import ExitStatus
from deit_fast.runtime.files import json_text
from deit_fast.runtime.object_store import is_remote
from deit_fast.runtime.stdout import outlive_reader, tell
from deit_fast.zoo import check_given, find_architecture, find_weights_row, list_models


def run_train(arguments: argparse.Namespace) -> int:
    """`deit-fast train`: trains, and prints the result in the main process; returns 0."""
    recipe = get_recipe(arguments.recipe, arguments.overrides)
    recipe.check_teacher(arguments.teacher)
    resume = arguments.resume if arguments.resume not in ("auto", "never") else None
    for given in (arguments.init if arguments.init != "none" else None, arguments.teacher):
        if given is not None:
            check_given(given)
    if resume is not None and not is_remote(resume) and not Path(resume).exists():
        raise RunError(f"{resume}: no such checkpoint")
    from deit_fast.cli.ending import describe_end
    from deit_fast.training.run import train

    result = train(
        arguments.recipe, arguments.data, arguments.out, arguments.val, arguments.init, arguments.resume,
        arguments.teacher, arguments.labels, arguments.overrides,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        tell(*describe_end(result, arguments.out, arguments.data))
    return 0


def run_convert(arguments: argparse.Namespace) -> int:
    """`deit-fast convert`: writes a checkpoint in another format, and prints what changed; returns 0."""
    check_given(arguments.source)
    from deit_fast.convert.export import export_checkpoint
    from deit_fast.convert.fit import format_changes

    written = export_checkpoint(
        arguments.source, arguments.destination, arguments.format, arguments.overrides, arguments.ema
    )
    for line in written.said:
        print(f"deit-fast: {line}", file=sys.stderr)
    tell(f"{written.path}: {written.format}, from {written.source}", *format_changes(written.changes))
    tell(f"max difference of logits {written.difference:.1g}", *written.notes)
    return 0


def run_predict(arguments: argparse.Namespace) -> int:
    """`deit-fast predict`: prints the classes of images; returns INCOMPLETE if an image was unreadable, else 0."""
    check_given(arguments.checkpoint)
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
    with outlive_reader():
        print_predictions(found, arguments.kind)
    unread = [each.error for each in found if each.error]
    for error in unread:
        complain(error)
    return ExitStatus.INCOMPLETE if unread else 0


def run_show(arguments: argparse.Namespace) -> int:
    """`deit-fast show`: prints the recipe table or one recipe; returns 0.

    Raises RecipeError for --images and for --changed without a recipe or with --json.
    """
    if arguments.changed and (arguments.recipe is None or arguments.json or arguments.images is not None):
        raise RecipeError("--changed: expected with a recipe's name, and without --json and --images")
    if arguments.images is not None and (arguments.recipe is None or arguments.json):
        raise RecipeError(f"--images {arguments.images}: expected with a recipe's name and without --json")
    if arguments.recipe is None:
        table = {name: recipe.model_dump(mode="json") for name, recipe in RECIPES.items()}
        return _print_page(json_text(table) if arguments.json else list_as_text())
    recipe = get_recipe(arguments.recipe, arguments.overrides)
    if arguments.changed:
        return _print_page("\n".join(changes_as_text(recipe, arguments.recipe)))
    content = recipe.model_dump(mode="json")
    return _print_page(
        json_text(content) if arguments.json else recipe_as_text(recipe, arguments.images, arguments.recipe)
    )


def run_zoo(arguments: argparse.Namespace) -> int:
    """`deit-fast zoo`: prints the zoo's rows that match a pattern; returns 0. Raises RecipeError where none matches."""
    names = list_models(arguments.pattern)
    if not names and (row := find_weights_row(arguments.pattern)):
        names = [row.name]
    if not names:
        find_architecture(arguments.pattern)  # its error suggests a similar name
    return _print_page(zoo_as_json(names) if arguments.json else zoo_as_text(names))


def run_push(arguments: argparse.Namespace) -> int:
    """`deit-fast push`: uploads a checkpoint as a model of the Hugging Face Hub, and prints its address; returns 0."""
    check_given(arguments.source)
    from deit_fast.convert.push import push_checkpoint

    address, written = push_checkpoint(arguments.source, arguments.repository, arguments.ema, arguments.private)
    tell(f"{address}: {written.source}, max difference of logits {written.difference:.1g}")
    return 0


def run_manifest(arguments: argparse.Namespace) -> int:
    """`deit-fast manifest`: prints the YAML of a component's job; returns 0.

    A wrong word ends the process with REFUSED.
    """
    from deit_fast.components.manifest import render

    tell(render(arguments.stage, arguments.words).rstrip("\n"))
    return 0


def _print_page(text: str) -> int:
    tell(text)
    return 0
