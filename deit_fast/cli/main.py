"""The command line: `deit-fast train | evaluate | predict | convert | data | show | zoo | manifest`."""

import argparse
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from deit_fast.cli import commands
from deit_fast.cli.commands import complain
from deit_fast.runtime.errors import DataError, RecipeError, RunError, StoppedError, too_little_memory
from deit_fast.runtime.exit_status import ExitStatus, report_status, status_of
from deit_fast.runtime.files import lacking_space
from deit_fast.runtime.object_store import check_writable, is_remote

OVERRIDES = "section.key=value words that change the recipe, for example optim.lr=1e-3 (keys: deit-fast show NAME)"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. The function of a command is the `run` of its parsed arguments."""
    parser = _Parser(
        prog="deit-fast",
        description="Train DeiT III vision transformers.",
        epilog="Example: deit-fast data demo runs/digits && "
        "deit-fast train demo_pretrain --data runs/digits --out runs/demo/pretrain",
    )
    subcommands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

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
    _add_labels(train, "validation ")
    train.add_argument("--out", required=True, help="run folder, which may be in an object store")
    train.add_argument(
        "--init", metavar="PATH|none",
        help="weights to start from (finetuning): a file of any known format, or a run's folder; none: random ones",
    )  # fmt: skip
    train.add_argument(
        "--resume", default="auto", metavar="auto|never|PATH",
        help="default: auto, from the run folder; never starts over, with an earlier run moved to OUT/earlier-1",
    )  # fmt: skip
    train.add_argument("--teacher", help="weights of distill.teacher (.pth, .safetensors), for distillation")
    train.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    train.set_defaults(run=commands.run_train)

    evaluate = subcommands.add_parser(
        "evaluate",
        help="top-1 and top-5 of a checkpoint",
        epilog="Example: deit-fast evaluate runs/small --data /imagenet --json scores.json",
    )
    evaluate.add_argument("checkpoint", help="weights in any known format, or the folder of a run")
    evaluate.add_argument(
        "--data", help="image folder, tar shards or their URI: its val split, or what the run held out of it; default: "
        "what the run held out of its own",
    )  # fmt: skip
    _add_labels(evaluate)
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
        "--real", dest="metrics", action="append", type=lambda text: f"real={_path(text)}", metavar="real.json",
        help="score by the labels of ImageNet-ReaL too, as --metric real=real.json does",
    )  # fmt: skip
    evaluate.add_argument(
        "--report", type=_path, metavar="FOLDER", help="write accuracy per class, confusion matrix and worst mistakes"
    )
    evaluate.add_argument(
        "--json", type=_writable, metavar="FILE", help="write the scores to a file too, which may be in an object store"
    )
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    evaluate.set_defaults(run=commands.run_evaluate)

    convert = subcommands.add_parser(
        "convert",
        help="write a checkpoint in another format, and compare the logits",
        epilog="Example: deit-fast convert deit_3_base_224_1k.pth base.onnx",
    )
    convert.add_argument("source", help="weights in any known format, or the folder of a run")
    convert.add_argument("destination", type=_path, help="a folder, or a .safetensors (timm), .pth (facebookresearch/"
                         "deit), .msgpack (deit3-jax), .onnx or .pt2 file")  # fmt: skip
    convert.add_argument("--format", metavar="NAME", help="timm, facebook, deit3-jax, onnx or program")
    convert.add_argument("--ema", action="store_true", help="take the moving average of the weights")
    convert.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    convert.set_defaults(run=commands.run_convert)

    predict = subcommands.add_parser(
        "predict",
        help="the most likely classes of images",
        epilog="Example: deit-fast predict runs/small photos 'more/*.jpg' --top 3",
    )
    predict.add_argument("checkpoint", help="weights in any known format, or the folder of a run")
    predict.add_argument(
        "images", nargs="+", metavar="IMAGE", help="images, folders of them, globs; in object stores too"
    )
    predict.add_argument("--top", type=_positive, default=5, metavar="K", help="classes for each image; default: 5")
    kind = predict.add_mutually_exclusive_group()
    kind.add_argument("--json", dest="kind", action="store_const", const="json", help="print JSON")
    kind.add_argument("--csv", dest="kind", action="store_const", const="csv", help="print CSV, a line for each class")
    predict.add_argument("--ema", action="store_true", help="use the moving average of the weights")
    predict.add_argument("--flip", action="store_true", help="average each image with its mirror image")
    predict.add_argument("--batch", type=_positive, default=64, metavar="B", help="images at a time; default: 64")
    predict.add_argument("--allow-urls", action="store_true", help="fetch http:// and https:// images")
    predict.set_defaults(run=commands.run_predict)

    show = subcommands.add_parser(
        "show",
        help="list the recipes, or print one: where it is from, what it amounts to, every value",
        epilog="Example: deit-fast show deit3_base_1k_192 optim.lr=1e-3 --json > mine.json",
    )
    show.add_argument("recipe", nargs="?", help="name in the recipe table, or a .toml or .json file")
    show.add_argument("--json", action="store_true", help="as JSON, which deit-fast train also takes")
    show.add_argument(
        "--images", type=_positive, metavar="N", help="training images to count steps for; default: the named data's"
    )
    show.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    show.set_defaults(run=commands.run_show)

    zoo = subcommands.add_parser(
        "zoo",
        help="list the models: size, published speed and accuracy, where the weights are",
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

    data = subcommands.add_parser(
        "data",
        help="make the demo data, check, shard or index a data set, look at augmented images",
        epilog="Example: deit-fast data demo runs/digits",
    )
    kinds = data.add_subparsers(dest="kind", required=True, parser_class=_Parser)
    demo = kinds.add_parser(
        "demo",
        help="write 1,797 handwritten digits as an image folder with train/ and val/",
        epilog="Example: deit-fast data demo runs/digits",
    )
    demo.add_argument("folder", type=_path)
    demo.set_defaults(run=commands.run_data_demo)
    preview = kinds.add_parser(
        "preview",
        help="a picture of what a recipe's augmentation does",
        epilog="Example: deit-fast data preview deit3_small_1k_224 --data /imagenet --out views.png",
    )
    preview.add_argument("recipe", help="name in the recipe table, or a .toml or .json file")
    preview.add_argument("--data", required=True, help="image folder, tar shards or their URI")
    preview.add_argument("--out", required=True, type=_path, metavar="FILE.png")
    preview.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    preview.set_defaults(run=commands.run_data_preview)
    check = kinds.add_parser(
        "check",
        help="read and decode every image; status 1 where some cannot be used",
        epilog="Example: deit-fast data check /imagenet --out bad.txt",
    )
    check.add_argument("data", help="image folder, tar shards or their URI; both splits, if it has train/ and val/")
    _add_labels(check, "validation ")
    check.add_argument("--out", type=_path, metavar="FILE", help="write the names and reasons, separated by a tab")
    check.add_argument("--threads", type=_positive, default=os.cpu_count(), metavar="N", help="default: the cores")
    check.set_defaults(run=commands.run_data_check)
    shard = kinds.add_parser(
        "shard",
        help="write a data set as tar shards, smaller ones if asked for; run again, it goes on",
        epilog="Example: deit-fast data shard /imagenet /fast/imagenet-256 --size 256",
    )
    shard.add_argument("source", help="image folder, tar shards or their URI; both splits, if it has train/ and val/")
    shard.add_argument("folder", type=_path)
    _add_labels(shard, "validation ")
    shard.add_argument(
        "--size", type=_positive, metavar="PX", help="shorter side of larger images; default: as they are"
    )
    shard.add_argument(
        "--per-shard", type=_positive, metavar="N", help="images in a shard; default: as many as make 128 MB"
    )
    shard.add_argument(
        "--workers", type=_positive, default=os.cpu_count(), metavar="N", help="processes; default: the cores"
    )
    shard.set_defaults(run=commands.run_data_shard)
    index = kinds.add_parser(
        "index",
        help="make the index of tar shards, on this machine or in a store; a start with one reads no shard",
        epilog="Example: deit-fast data index s3://bucket/imagenet --out imagenet-index",
    )
    index.add_argument("data", metavar="URI", help="tar shards; both splits, if it has train-*.tar and val-*.tar")
    index.add_argument(
        "--out", type=_path, metavar="FOLDER", help="where to write it, as a data set; default: beside the shards"
    )
    index.add_argument(
        "--plan", type=_positive, nargs="?", const=1000, metavar="MB/S",
        help="tell what training from a store needs: disk by data.block, and time at so many MB/s; default: 1000",
    )  # fmt: skip
    index.set_defaults(run=commands.run_data_index)
    return parser


def _add_labels(parser: argparse.ArgumentParser, which: str = "") -> None:
    parser.add_argument(
        "--labels", type=_path, metavar="FILE",
        help=f"labels of {which}images without class folders; default: a file of a published name beside them",
    )  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """argparse with one line on a usage error."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(ExitStatus.REFUSED, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its ExitStatus; an error that a user can meet is told on stderr, a line each."""
    status = _run(argv)
    report_status(status)
    return status


def _run(argv: Sequence[str] | None) -> int:
    arguments, words = build_parser().parse_known_args(argv)
    try:
        # argparse takes positional words only in one place; key=value words may stand anywhere.
        for word in words:
            if word.startswith("-") or not hasattr(arguments, "overrides"):
                raise RecipeError(f"{word}: no such option of this command (see --help)")
            arguments.overrides.append(word)
        return arguments.run(arguments)
    except (RecipeError, DataError, RunError, StoppedError) as error:
        complain(error)
        return error.status
    except OSError as error:  # a full disk, a path that cannot be written
        place = error.filename or "a file"
        lacking = lacking_space(Path(str(place))) if error.errno == errno.ENOSPC else ""
        complain(f"{place}: {error.strerror or error}" + (f": {lacking}" if lacking else ""))
        return status_of(error)
    except (MemoryError, ImportError, RuntimeError) as error:
        if not (limit := too_little_memory(error)):
            raise
        complain(limit)
        return ExitStatus.REFUSED
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":
            complain(str(error) or "interrupted; run the same command again")
        return ExitStatus.INTERRUPTED


def _path(text: str) -> Path:
    if is_remote(text):
        raise argparse.ArgumentTypeError(f"expected a path on this machine, got {text}")
    return Path(text)


def _writable(text: str) -> str:
    if is_remote(text):
        try:
            check_writable(text)
        except RunError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)
