"""`deit-fast data demo | preview | check | shard | index`: their parsers and functions."""

import argparse
import os

from deit_fast.cli.arguments import OVERRIDES, Parser, add_labels, local_path, positive
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import DataError, RunError, printable
from deit_fast.runtime.exit_status import ExitStatus
from deit_fast.runtime.stdout import tell


def add_data_parser(subcommands: "argparse._SubParsersAction[Parser]") -> None:
    """Adds the command `data` and its subcommands."""
    data = subcommands.add_parser(
        "data",
        help="make the demo data, check, shard or index a data set, look at augmented images",
        epilog="Example: deit-fast data demo runs/digits",
    )
    kinds = data.add_subparsers(dest="kind", required=True, parser_class=Parser)
    demo = kinds.add_parser(
        "demo",
        help="write 1,797 handwritten digits as an image folder with train/ and val/",
        epilog="Example: deit-fast data demo runs/digits",
    )
    demo.add_argument("folder", type=local_path)
    demo.set_defaults(run=run_demo)
    preview = kinds.add_parser(
        "preview",
        help="a picture of what a recipe's augmentation does",
        epilog="Example: deit-fast data preview deit3_small_1k_224 --data /imagenet --out views.png",
    )
    preview.add_argument("recipe", help="name in the recipe table, or a .toml or .json file")
    preview.add_argument("--data", required=True, help="image folder, tar shards or their URI")
    preview.add_argument("--out", required=True, type=local_path, metavar="FILE.png")
    preview.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    preview.set_defaults(run=run_preview)
    check = kinds.add_parser(
        "check",
        help="read and decode every image; status 1 where some cannot be used",
        epilog="Example: deit-fast data check /imagenet --out bad.txt",
    )
    check.add_argument("data", help="image folder, tar shards or their URI; both splits, if it has train/ and val/")
    add_labels(check, "validation ")
    check.add_argument("--out", type=local_path, metavar="FILE", help="write the names and reasons, separated by a tab")
    check.add_argument("--threads", type=positive, default=os.cpu_count(), metavar="N", help="default: the cores")
    check.set_defaults(run=run_check)
    shard = kinds.add_parser(
        "shard",
        help="write a data set as tar shards, smaller ones if asked for; run again, it goes on",
        epilog="Example: deit-fast data shard /imagenet /fast/imagenet-256 --size 256",
    )
    shard.add_argument("source", help="image folder, tar shards or their URI; both splits, if it has train/ and val/")
    shard.add_argument("folder", type=local_path)
    add_labels(shard, "validation ")
    shard.add_argument(
        "--size", type=positive, metavar="PX", help="shorter side of larger images; default: as they are"
    )
    shard.add_argument(
        "--per-shard", type=positive, metavar="N", help="images in a shard; default: as many as make 128 MB"
    )
    shard.add_argument(
        "--workers", type=positive, default=os.cpu_count(), metavar="N", help="processes; default: the cores"
    )
    shard.set_defaults(run=run_shard)
    index = kinds.add_parser(
        "index",
        help="make the index of tar shards, on this machine or in a store; a start with one reads no shard",
        epilog="Example: deit-fast data index s3://bucket/imagenet --out imagenet-index",
    )
    index.add_argument("data", metavar="URI", help="tar shards; both splits, if it has train-*.tar and val-*.tar")
    index.add_argument(
        "--out", type=local_path, metavar="FOLDER", help="where to write it, as a data set; default: beside the shards"
    )
    index.add_argument(
        "--plan", type=positive, nargs="?", const=1000, metavar="MB/S",
        help="tell what training from a store needs: disk by data.block, and time at so many MB/s; default: 1000",
    )  # fmt: skip
    index.set_defaults(run=run_index)


def run_demo(arguments: argparse.Namespace) -> int:
    """`deit-fast data demo`: writes the demo's digits, and prints their folder; returns 0."""
    from deit_fast.data.tools.demo import write_demo

    tell(write_demo(arguments.folder))
    return 0


def run_preview(arguments: argparse.Namespace) -> int:
    """`deit-fast data preview`: writes a picture of the views that training sees; returns 0.

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
    tell(arguments.out)
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    """`deit-fast data check`: prints a report of each split; returns INCOMPLETE if an image was unusable, else 0."""
    from deit_fast.data.sources.class_gaps import describe_gaps
    from deit_fast.data.sources.classes import match_classes
    from deit_fast.data.sources.open import open_splits
    from deit_fast.data.tools.check import check_source, open_to_check, write_bad

    sources = open_splits(arguments.data, arguments.labels, open_to_check)
    bad = []
    for split, source in sources.items():
        checked = check_source(source, arguments.threads)
        tell(f"{source.place}, {split}: {checked.as_text()}", *describe_gaps(source))
        bad += checked.bad
    if len(sources) > 1:
        try:
            match_classes(sources["val"], sources["train"].classes, f"{arguments.data}'s classes")
        except DataError as error:
            tell(error)
            bad.append((printable(sources["val"].uri), str(error).removeprefix(f"{sources['val'].uri}: ")))
    if arguments.out:
        write_bad(arguments.out, bad)
    return ExitStatus.INCOMPLETE if bad else 0


def run_shard(arguments: argparse.Namespace) -> int:
    """`deit-fast data shard`: writes tar shards of each split, and prints their number; returns 0."""
    from deit_fast.data.sources.classes import match_classes
    from deit_fast.data.sources.open import open_splits
    from deit_fast.data.tools.write_shards import describe_effect, write_shards

    sources = open_splits(arguments.source, arguments.labels)
    if len(sources) > 1:
        match_classes(sources["val"], sources["train"].classes, f"{arguments.source}'s classes")
        sources["val"].classes = sources["train"].classes  # for one classes.txt, even if validation has numbers only
    if arguments.size is not None:
        tell(describe_effect(next(iter(sources.values())), arguments.size))
    for split, source in sources.items():
        written = write_shards(
            source, arguments.folder, split, arguments.size, arguments.per_shard, arguments.workers
        )  # fmt: skip
        tell(
            f"{split}: {written.images} images in {written.shards} shards of {arguments.folder}; "
            f"{written.resized} resized, {written.kept_shards} shards were there already"
        )
    return 0


def run_index(arguments: argparse.Namespace) -> int:
    """`deit-fast data index`: makes the index of tar shards, and prints its content and training's needs; returns 0."""
    from deit_fast.data.loader.streaming_plan import describe_plan
    from deit_fast.data.tools.index import index_shards

    found = index_shards(arguments.data, arguments.out)
    for indexed in found:
        tell(indexed.as_text())
    if arguments.plan is not None:
        sizes = [shard.bytes for shard in found[0].index.shards]  # of the training shards, if there are any
        tell("", *describe_plan(arguments.data, sizes, len(found[0].index.rows), arguments.plan))
    return 0
