"""`deit-fast evaluate`: its parser and its function, for one checkpoint on one data set or a table of several."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from deit_fast.cli.arguments import OVERRIDES, WEIGHTS, Parser, add_labels, complain, local_file, local_path, writable
from deit_fast.runtime.errors import DataError, RecipeError, RunError
from deit_fast.runtime.files import json_text, write_json
from deit_fast.runtime.object_store import is_remote, write_object
from deit_fast.runtime.stdout import tell
from deit_fast.zoo import check_given

_OVERRIDE = re.compile(r"[a-z_]+\.[a-z0-9_]+=")
_WEIGHTS = (".pt", ".pth", ".safetensors", ".msgpack", ".bin")


def add_evaluate_parser(subcommands: "argparse._SubParsersAction[Parser]") -> None:
    """Adds the command `evaluate`."""
    evaluate = subcommands.add_parser(
        "evaluate",
        help="top-1 and top-5 of checkpoints",
        epilog="Example: deit-fast evaluate runs/small --data /imagenet --json scores.json",
    )
    evaluate.add_argument("checkpoints", nargs="+", metavar="checkpoint", help=WEIGHTS)
    evaluate.add_argument(
        "--data", action="append",
        help="image folder, tar shards or their URI: its val split, or what the run held out of it; given several "
        "times, each is scored; default: what the run held out of its own",
    )  # fmt: skip
    add_labels(evaluate)
    evaluate.add_argument("--ema", action="store_true", help="evaluate the moving average of the weights")
    evaluate.add_argument(
        "--classes", choices=("data", "all"),
        help="for data with some of the model's classes, by name: choose among the data's alone, or among all",
    )  # fmt: skip
    evaluate.add_argument("--flip", action="store_true", help="average the logits of each image and its mirror image")
    evaluate.add_argument(
        "--metric", dest="metrics", action="append", default=[], metavar="NAME=VALUE",
        help="a metric to ask for: real=FILE; accuracy and loss are always on",
    )  # fmt: skip
    evaluate.add_argument(
        "--real", dest="metrics", action="append", type=lambda text: f"real={local_path(text)}", metavar="real.json",
        help="score by the labels of ImageNet-ReaL too, as --metric real=real.json does",
    )  # fmt: skip
    evaluate.add_argument(
        "--report", type=local_path, metavar="FOLDER",
        help="write accuracy per class, confusion matrix and worst mistakes",
    )  # fmt: skip
    evaluate.add_argument(
        "--json", nargs="?", const="-", type=writable, metavar="FILE",
        help="print the scores as JSON, or write them to a file, which may be in an object store",
    )  # fmt: skip
    evaluate.add_argument("--csv", type=local_file, metavar="FILE", help="write a row of scores for each, as timm does")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    evaluate.set_defaults(run=run_evaluate)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Prints the scores in the main process, as a sentence or as a table; returns 0.

    If one of several evaluations is refused, a line says so and the command's status is that of the error; the others
    run.
    """
    # argparse assigns all words to the first of two such lists.
    given = [*arguments.checkpoints, *arguments.overrides]
    words = [each for each in given if _OVERRIDE.match(each) and not Path(each).exists()]
    checkpoints, report = [each for each in given if each not in words], arguments.report
    pairs = [(checkpoint, data) for checkpoint in checkpoints for data in arguments.data or [None]]
    if not checkpoints:
        raise RunError(f"{words[0]}: expected a checkpoint before the words that change its recipe")
    if report is not None and len(pairs) > 1:
        raise RunError(f"--report {report}: expected one checkpoint and one --data, got {len(pairs)} evaluations")
    if arguments.json not in (None, "-") and (
        arguments.json.endswith(_WEIGHTS) or (not is_remote(arguments.json) and Path(arguments.json).is_dir())
    ):
        raise RunError(f"--json {arguments.json}: expected a file for the scores; to print them, put --json last")
    if len(pairs) == 1:
        check_given(checkpoints[0])  # a wrong name is refused before torch is imported
    from deit_fast.infer.evaluate import evaluate_checkpoint
    from deit_fast.infer.score_table import describe_scores, score_lines, write_scores

    main, status, results = os.environ.get("RANK", "0") == "0", 0, list[dict[str, Any]]()
    for checkpoint, data in pairs:
        try:
            check_given(checkpoint)
            scores = evaluate_checkpoint(
                checkpoint, data, words, arguments.ema, arguments.flip, arguments.metrics, report,
                arguments.labels, arguments.classes,
            )  # fmt: skip
        except (RecipeError, DataError, RunError) as error:
            if len(pairs) == 1:
                raise
            complain(error)
            status = status or error.status
            continue
        results.append(scores)
        for note in scores["notes"] if main else []:
            print(f"deit-fast: {checkpoint}: {note}", file=sys.stderr)
        if main and arguments.json != "-":
            tell(describe_scores(scores))
    if not main:
        return status
    content = results[0] if len(pairs) == 1 else results
    if arguments.json == "-":
        tell(json_text(content))
    elif arguments.json is not None and is_remote(arguments.json):
        write_object(arguments.json, (json_text(content) + "\n").encode())
    elif arguments.json is not None:
        write_json(Path(arguments.json), content)
    if len(results) > 1 and arguments.json != "-":
        tell("", *score_lines(results))
    if arguments.csv is not None:
        write_scores(arguments.csv, results)
    return status
