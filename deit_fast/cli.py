"""The command line: `deit-fast train | evaluate | data | show | zoo`. Thin: torch and DALI come late."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from deit_fast.errors import DataError, RecipeError, RunError, StoppedError
from deit_fast.files import write_json
from deit_fast.recipes import RECIPES, get_recipe
from deit_fast.show import list_as_text, recipe_as_text
from deit_fast.zoo import find_architecture, list_models
from deit_fast.zoo.table import zoo_as_json, zoo_as_text

EXIT_STOPPED = 75  # EX_TEMPFAIL: work is left, run it again
OVERRIDES = "section.key=value words that change the recipe, for example optim.lr=1e-3 (keys: deit-fast show NAME)"


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="deit-fast",
        description="Train DeiT III vision transformers.",
        epilog="Example: deit-fast data demo digits && deit-fast train demo_pretrain --data digits --out runs/digits",
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    train = commands.add_parser(
        "train",
        help="train a recipe; run again in the same folder, it resumes",
        epilog="Example: deit-fast train deit3_small_1k_224 --data /imagenet --out runs/small schedule.epochs=400",
    )
    train.add_argument("recipe", help="name in the recipe table, or a .toml or .json file")
    train.add_argument("--data", required=True, help="image folder, or tar shards such as train-{0000..0009}.tar")
    train.add_argument("--val", help="validation data; default: the val split beside the training split")
    train.add_argument("--out", required=True, type=Path, help="run folder")
    train.add_argument("--init", type=Path, help="checkpoint to take the weights from (finetuning)")
    train.add_argument("--resume", default="auto", metavar="auto|never|PATH", help="default: auto, from the run folder")
    train.add_argument("--teacher", type=Path, help="weights of distill.teacher (.pth, .safetensors), for distillation")
    train.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "evaluate",
        help="top-1 and top-5 of a checkpoint",
        epilog="Example: deit-fast evaluate runs/small/checkpoints/last.pt --data /imagenet --json scores.json",
    )
    evaluate.add_argument("checkpoint", type=Path, help=".pt or .safetensors file of a run")
    evaluate.add_argument("--data", required=True, help="image folder or tar shards; its val split, if it has one")
    evaluate.add_argument("--ema", action="store_true", help="evaluate the moving average of the weights")
    evaluate.add_argument("--flip", action="store_true", help="average the logits of each image and its mirror image")
    evaluate.add_argument("--real", type=Path, metavar="real.json", help="score by the labels of ImageNet-ReaL too")
    evaluate.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write accuracy per class, confusion matrix and worst mistakes"
    )
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the scores to a file too")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    evaluate.set_defaults(run=_evaluate)

    show = commands.add_parser(
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
    show.set_defaults(run=_show)

    zoo = commands.add_parser(
        "zoo",
        help="list the models: size, published speed and accuracy, where the weights are",
        epilog="Example: deit-fast zoo 'deit3_*'",
    )
    zoo.add_argument("pattern", nargs="?", default="*", help="shell pattern of names, ours, timm's or the reference's")
    zoo.add_argument("--json", action="store_true", help="as JSON, with the architectures")
    zoo.set_defaults(run=_zoo)

    data = commands.add_parser(
        "data",
        help="make the demo data, or look at augmented images",
        epilog="Example: deit-fast data demo digits",
    )
    kinds = data.add_subparsers(dest="kind", required=True, parser_class=_Parser)
    demo = kinds.add_parser(
        "demo",
        help="write 1,797 handwritten digits as an image folder with train/ and val/",
        epilog="Example: deit-fast data demo digits",
    )
    demo.add_argument("folder", type=Path)
    demo.set_defaults(run=_data_demo)
    preview = kinds.add_parser(
        "preview",
        help="a picture of what a recipe's augmentation does",
        epilog="Example: deit-fast data preview deit3_small_1k_224 --data /imagenet --out views.png",
    )
    preview.add_argument("recipe", help="name in the recipe table, or a .toml or .json file")
    preview.add_argument("--data", required=True, help="image folder or tar shards")
    preview.add_argument("--out", required=True, type=Path, metavar="FILE.png")
    preview.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    preview.set_defaults(run=_data_preview)
    shard = kinds.add_parser(
        "shard",
        help="write a data set as tar shards, smaller ones if asked for; run again, it goes on",
        epilog="Example: deit-fast data shard /imagenet /fast/imagenet-256 --size 256",
    )
    shard.add_argument("source", help="image folder or tar shards; both splits, if it has train/ and val/")
    shard.add_argument("folder", type=Path)
    shard.add_argument("--size", type=int, metavar="PX", help="shorter side of larger images; default: as they are")
    shard.add_argument("--per-shard", type=int, default=2000, metavar="N", help="images in a shard; default: 2000")
    shard.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes; default: the cores")
    shard.set_defaults(run=_data_shard)
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse with one line on a usage error."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 on success, 2 and one line on stderr for what the user can mend, 75 stopped by a signal."""
    arguments, words = build_parser().parse_known_args(argv)
    try:
        # argparse takes positional words only in one place; key=value words may stand anywhere.
        for word in words:
            if word.startswith("-") or not hasattr(arguments, "overrides"):
                raise RecipeError(f"{word}: no such option of this command (see --help)")
            arguments.overrides.append(word)
        return arguments.run(arguments)
    except (RecipeError, DataError, RunError) as error:
        return _complain(error, 2)
    except OSError as error:  # a full disk, a path that cannot be written
        return _complain(f"{error.filename or 'a file'}: {error.strerror or error}", 2)
    except StoppedError as error:
        return _complain(error, EXIT_STOPPED)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _complain(message: object, status: int) -> int:
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    print(f"deit-fast: {rank}{message}", file=sys.stderr)
    return status


def _train(arguments: argparse.Namespace) -> int:
    recipe = get_recipe(arguments.recipe, arguments.overrides)
    recipe.check_teacher(arguments.teacher)
    resume = arguments.resume if arguments.resume not in ("auto", "never") else None
    for path in (arguments.init, resume, arguments.teacher):
        if path is not None and not Path(path).is_file():
            raise RunError(f"{path}: no such checkpoint")
    from deit_fast.train import train

    result = train(
        recipe, arguments.data, arguments.out, arguments.val, arguments.init, arguments.resume, arguments.teacher
    )
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(result, indent=2))
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    if not arguments.checkpoint.is_file():
        raise RunError(f"{arguments.checkpoint}: no such checkpoint")
    from deit_fast.evaluate import evaluate_checkpoint

    scores = evaluate_checkpoint(
        arguments.checkpoint, arguments.data, arguments.overrides,
        arguments.ema, arguments.flip, arguments.real, arguments.report,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(scores, indent=2))
        if arguments.json:
            write_json(arguments.json, scores)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    if arguments.images is not None and (arguments.recipe is None or arguments.json):
        raise RecipeError(f"--images {arguments.images}: expected with a recipe's name and without --json")
    if arguments.recipe is None:
        table = {name: recipe.model_dump(mode="json") for name, recipe in RECIPES.items()}
        return _print_page(json.dumps(table, indent=2) if arguments.json else list_as_text())
    recipe = get_recipe(arguments.recipe, arguments.overrides)
    content = recipe.model_dump(mode="json")
    return _print_page(json.dumps(content, indent=2) if arguments.json else recipe_as_text(recipe, arguments.images))


def _print_page(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `deit-fast show NAME | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush complains
    return 0


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)


def _zoo(arguments: argparse.Namespace) -> int:
    names = list_models(arguments.pattern)
    if not names:
        find_architecture(arguments.pattern)  # says which name is near
    return _print_page(zoo_as_json(names) if arguments.json else zoo_as_text(names))


def _data_demo(arguments: argparse.Namespace) -> int:
    from deit_fast.data.demo import write_demo

    print(write_demo(arguments.folder))
    return 0


def _data_preview(arguments: argparse.Namespace) -> int:
    recipe = get_recipe(arguments.recipe, arguments.overrides)
    if arguments.out.suffix.lower() != ".png":
        raise RunError(f"--out {arguments.out}: expected a name that ends in .png")
    from deit_fast.data.preview import preview
    from deit_fast.data.sources import open_source

    source = open_source(arguments.data, "train", recipe.data.category)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    preview(recipe, source, arguments.out)
    print(arguments.out)
    return 0


def _data_shard(arguments: argparse.Namespace) -> int:
    for option in ("size", "per_shard", "workers"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise RunError(f"--{option.replace('_', '-')} {value}: expected 1 or more")
    from deit_fast.data.source import Source
    from deit_fast.data.sources import Split, find_validation, open_source
    from deit_fast.data.write_shards import describe_effect, write_shards

    sources: dict[Split, Source] = {"train": open_source(arguments.source, "train")}
    if (val := find_validation(arguments.source)) is not None:
        sources["val"] = open_source(val, "val")
    if arguments.size is not None:
        print(describe_effect(sources["train"], arguments.size), flush=True)
    for split, source in sources.items():
        written = write_shards(
            source, arguments.folder, split, arguments.size, arguments.per_shard, arguments.workers
        )  # fmt: skip
        print(
            f"{split}: {written.images} images in {written.shards} shards of {arguments.folder}; "
            f"{written.resized} resized, {written.kept_shards} shards were there already"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
