"""The command line: `deit-fast train | evaluate | predict | convert | data | show | plan | zoo | manifest`."""

import argparse
import errno
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import deit_fast
from deit_fast.cli import commands
from deit_fast.cli.arguments import (
    OVERRIDES,
    WEIGHTS,
    Parser,
    add_labels,
    complain,
    complain_of_memory,
    local_path,
    positive,
)
from deit_fast.cli.completion import add_completion_parser, complete
from deit_fast.cli.data import add_data_parser
from deit_fast.cli.evaluate import add_evaluate_parser
from deit_fast.cli.other_tools import option_hint, refuse_options_of_others
from deit_fast.cli.plan import add_plan
from deit_fast.cli.report import add_report_parsers
from deit_fast.runtime.errors import DataError, RecipeError, RunError, StoppedError, suggest
from deit_fast.runtime.exit_status import ExitStatus, report_status, status_of
from deit_fast.runtime.files import lacking_space

FORWARDED = {
    "pipeline": ("deit_fast.pipelines.deit3", "pretrain, finetune and evaluate as jobs (deit-fast pipeline --help)"),
    "benchmark": ("deit_fast.benchmarks.__main__", "speed, memory and accuracy (deit-fast benchmark --help)"),
}
"""Commands whose words are parsed by the `main` of another module: the module, and a description."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. `run` of the parsed arguments is the command's function."""
    parser = Parser(
        prog="deit-fast",
        description="Train DeiT III vision transformers.",
        epilog="Example: deit-fast data demo runs/digits && "
        "deit-fast train demo_pretrain --data runs/digits --out runs/demo/pretrain",
    )
    parser.add_argument("--version", action="version", version=f"deit-fast {deit_fast.__version__}")
    subcommands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    train = subcommands.add_parser(
        "train",
        help="train a recipe; run again in the same folder, it resumes",
        epilog="Example: deit-fast train deit3_small_1k_224 --data /imagenet --out runs/small schedule.epochs=400",
    )
    train.add_argument("recipe", help="name in the recipe table, or a .toml or .json file")
    train.add_argument("--data", required=True, help="image folder, tar shards (train-{0000..0009}.tar) or their URI")
    train.add_argument(
        "--val", metavar="DATA|SHARE",
        help="validation data, or the share of each class to hold out, as 0.1, listed in OUT/val.json; 0 is none; "
        "default: the val split beside the training split, else the recipe's data.val_fraction",
    )  # fmt: skip
    add_labels(train, "validation ")
    train.add_argument("--out", required=True, help="run folder, which may be in an object store")
    train.add_argument(
        "--init", metavar="WEIGHTS|none",
        help="weights to start from (finetuning): a file of any known format, a model's or run's folder, a URI, or a "
        "name of deit-fast zoo; none: random ones",
    )  # fmt: skip
    train.add_argument(
        "--resume", default="auto", metavar="auto|never|PATH",
        help="default: auto, from the run folder; never starts over, with an earlier run moved to OUT/earlier-1",
    )  # fmt: skip
    train.add_argument("--teacher", help="weights of distill.teacher (.pth, .safetensors), for distillation")
    train.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    train.set_defaults(run=commands.run_train)

    add_evaluate_parser(subcommands)

    convert = subcommands.add_parser(
        "convert",
        help="write a checkpoint in another format, and compare the logits",
        epilog="Example: deit-fast convert deit_3_base_224_1k.pth base.onnx",
    )
    convert.add_argument("source", help=WEIGHTS)
    convert.add_argument(
        "destination", type=local_path,
        help="a folder, or a .safetensors (timm), .pth (facebookresearch/deit), .msgpack (deit3-jax), .onnx, .pt2 or "
        ".torchscript file",
    )  # fmt: skip
    convert.add_argument(
        "--to", "--format", dest="format", metavar="NAME",
        help="timm, facebook, deit3-jax, onnx, program or torchscript; default: by the destination's ending",
    )  # fmt: skip
    convert.add_argument("--ema", action="store_true", help="take the moving average of the weights")
    convert.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    convert.set_defaults(run=commands.run_convert)

    push = subcommands.add_parser(
        "push",
        help="upload a checkpoint to the Hugging Face Hub, in timm's layout, with a model card",
        epilog="Example: deit-fast push runs/photos me/photos-vit --private",
    )
    push.add_argument("source", help=WEIGHTS)
    push.add_argument("repository", metavar="OWNER/NAME", help="made where it is missing")
    push.add_argument("--private", action="store_true", help="make it private, where it is made")
    push.add_argument("--ema", action="store_true", help="take the moving average of the weights")
    push.set_defaults(run=commands.run_push)

    predict = subcommands.add_parser(
        "predict",
        help="the most likely classes of images",
        epilog="Example: deit-fast predict runs/small photos 'more/*.jpg' --top 3",
    )
    predict.add_argument("checkpoint", help=WEIGHTS)
    predict.add_argument(
        "images", nargs="+", metavar="IMAGE", help="images, folders of them, globs; in object stores too"
    )
    predict.add_argument("--top", type=positive, default=5, metavar="K", help="classes for each image; default: 5")
    kind = predict.add_mutually_exclusive_group()
    kind.add_argument("--json", dest="kind", action="store_const", const="json", help="print JSON")
    kind.add_argument("--csv", dest="kind", action="store_const", const="csv", help="print CSV, a line for each class")
    predict.add_argument("--ema", action="store_true", help="use the moving average of the weights")
    predict.add_argument("--flip", action="store_true", help="average each image with its mirror image")
    predict.add_argument("--batch", type=positive, default=64, metavar="B", help="images at a time; default: 64")
    predict.add_argument("--allow-urls", action="store_true", help="fetch http:// and https:// images")
    predict.set_defaults(run=commands.run_predict)

    add_report_parsers(subcommands)

    show = subcommands.add_parser(
        "show",
        help="list the recipes, or print one: where it is from, what it amounts to, every value",
        epilog="Example: deit-fast show deit3_base_1k_192 optim.lr=1e-3 --json > mine.json",
    )
    show.add_argument("recipe", nargs="?", help="name in the recipe table, or a .toml or .json file")
    show.add_argument("--json", action="store_true", help="as JSON, which deit-fast train also takes")
    show.add_argument("--changed", action="store_true", help="only the values that the recipe's origin has otherwise")
    show.add_argument(
        "--images", type=positive, metavar="N", help="training images to count steps for; default: the named data's"
    )
    show.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    show.set_defaults(run=commands.run_show)

    add_plan(subcommands)

    zoo = subcommands.add_parser(
        "zoo",
        help="list the models: size, published speed and accuracy, the weights by name and where they are",
        epilog="Example: deit-fast zoo 'deit3_*'",
    )
    zoo.add_argument("pattern", nargs="?", default="*", help="shell pattern of names, ours, timm's or the reference's")
    zoo.add_argument("--json", action="store_true", help="as JSON, with the architectures")
    zoo.set_defaults(run=commands.run_zoo)

    manifest = subcommands.add_parser(
        "manifest",
        help="print a component's job as Kubernetes takes it: JobSet, TrainJob or Volcano's Job",
        epilog="Example: deit-fast manifest pretrain --as jobset --queue gpus --recipe deit3_base_1k_192 --data /data "
        "--out /runs/base -j 4x8 -h h100 | kubectl apply -f - (deit-fast manifest pretrain --help)",
    )
    manifest.add_argument("stage", choices=("pretrain", "finetune", "evaluate"), help="component: deit.STAGE")
    manifest.add_argument("words", nargs=argparse.REMAINDER, help="where it runs, and the component's arguments")
    manifest.set_defaults(run=commands.run_manifest)

    add_data_parser(subcommands)
    for name, (_, meaning) in FORWARDED.items():
        subcommands.add_parser(name, add_help=False, help=meaning)
    add_completion_parser(subcommands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its ExitStatus. An error that a user can meet is printed to stderr, a line each."""
    status = _run(argv)
    report_status(status)
    return status


def _run(argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = argparse.Namespace()
    try:
        if argv and argv[0] in FORWARDED:
            return import_module(FORWARDED[argv[0]][0]).main(argv[1:], f"deit-fast {argv[0]}")
        parser = build_parser()
        if "_ARGCOMPLETE" in os.environ:
            complete(parser)
        refuse_options_of_others(argv, parser)
        arguments, words = parser.parse_known_args(argv)
        # argparse accepts positional words in one place only, but key=value words may stand anywhere.
        unknown = [word for word in words if word.startswith("-") or not hasattr(arguments, "overrides")]
        if unknown:
            raise RecipeError(
                "\n".join(
                    f"{word}: no such option of this command{_meant(word, parser, argv[0])} (see --help)"
                    for word in unknown
                )
            )
        if words:
            arguments.overrides += words
        return arguments.run(arguments)
    except (RecipeError, DataError, RunError, StoppedError) as error:
        complain(error)
        return error.status
    except OSError as error:  # for example a full disk, or a path that cannot be written
        place = error.filename or "a file"
        lacking = lacking_space(Path(str(place))) if error.errno == errno.ENOSPC else ""
        complain(f"{place}: {error.strerror or error}" + (f": {lacking}" if lacking else ""))
        return status_of(error)
    except (MemoryError, ImportError, RuntimeError) as error:
        status = complain_of_memory(error, arguments)
        if status is None:
            raise
        return status
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":
            complain(str(error) or "interrupted; run the same command again")
        return ExitStatus.INTERRUPTED


def _meant(word: str, parser: argparse.ArgumentParser, command: str) -> str:
    """A hint for an unknown option. argparse has no public list of a command's options: they are read off its usage."""
    usage = next((each.choices[command].format_usage() for each in parser._actions
                  if isinstance(each, argparse._SubParsersAction) and command in each.choices), "")  # fmt: skip
    return option_hint(word) or suggest(word, re.findall(r"--[\w-]+", usage))
