"""`python -m benchmarks COMMAND`: each prints its progress and leaves one JSON; `report` makes tables of them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deit_fast.cli.arguments import Parser
from deit_fast.runtime.errors import DataError, RecipeError, RunError

RESULTS = Path(__file__).resolve().parent / "results"


def build_parser(prog: str = "python -m benchmarks") -> argparse.ArgumentParser:
    common = Parser(add_help=False)
    common.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    common.add_argument("--quick", action="store_true", help="small and under a minute: does it run at all")
    common.add_argument("--brief", action="store_true", help="3 repeats of 0.5 s, where GPU time is short")
    common.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON; default: benchmarks/results")
    common.add_argument("--minutes", type=float, help="start nothing more after this long")
    data = Parser(add_help=False)
    data.add_argument("--data", metavar="URI", help="image folder or tar shards; default: generated JPEGs")
    models = Parser(add_help=False)
    models.add_argument("--models", nargs="+", metavar="NAME[@SIZE]", help="zoo entries, for example "
                        "deit3_base_patch16@192")  # fmt: skip

    parser = Parser(
        prog=prog,
        description=f"`{prog} COMMAND`: each prints its progress and leaves one JSON; `report` makes tables of them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    throughput = commands.add_parser("throughput", parents=[common, models], help="the model table")
    throughput.add_argument("--mode", choices=("inference", "train"), default="inference")
    throughput.add_argument("--batch", help="a number, or auto for the best one; default: by model")
    engine = commands.add_parser("engine", parents=[common, models], help="our step against engines R and T")
    engine.add_argument("--batch", type=int)
    engine.add_argument("--against", nargs="+", default=[], choices=(
        "ours_dense", "ours_autocast", "timm", "reference"), help="default: all")  # fmt: skip
    engine.add_argument("words", nargs="*", metavar="key=value", help="changes of the recipe, for all engines")
    loader = commands.add_parser("loader", parents=[common, data], help="our loader against torchvision and PIL")
    loader.add_argument(
        "--cases",
        nargs="+",
        help="decode three_augment repeated_augmentation evaluation shards_256; where they are named, against all "
        "other loaders: race_three_augment race_repeated_augmentation race_evaluation race_rand_augment",
    )
    commands.add_parser("optimizer", parents=[common, models], help="LAMB against peers and a copy")
    listing = commands.add_parser("listing", parents=[common], help="opening large image folders, again and again")
    listing.add_argument("--images", nargs="+", type=int, help="numbers of images; default: 10000 100000 1000000")
    end = commands.add_parser("end-to-end", parents=[common, data, models], help="real images against synthetic ones")
    end.add_argument("--batch", type=int)
    commands.add_parser("order", parents=[common], help="how well an epoch's orders mix, and their costs by size")
    floors = commands.add_parser("floors", parents=[common, data], help="fails where a CPU ratio is too low")
    floors.add_argument("--record", action="store_true", help="write what is measured to benchmarks/floors.json")
    streaming = commands.add_parser("streaming", parents=[common, data], help="shards from a store, ours and peers'")
    streaming.add_argument("--peers-python", default=sys.executable, metavar="PYTHON", help="the Python of an "
                           "environment with webdataset, mosaicml-streaming, litdata; default: this")  # fmt: skip
    streaming.add_argument("--before", type=Path, metavar="FOLDER", help="a checkout of an earlier build, run too")
    growth = commands.add_parser("growth", parents=[common], help="index, start, order and memory by the set's size")
    growth.add_argument("--images", type=int, nargs="+", metavar="N", help="2 KiB of disk each; default: to a million")
    traffic = commands.add_parser("traffic", parents=[common, models], help="bytes that a GPU would move, counted")
    traffic.add_argument("--record", action="store_true", help="write what is counted to benchmarks/traffic.json")
    traffic.add_argument("--assemble", action="store_true", help="assemble all kernels for sm_90: none may spill")
    traffic.add_argument("words", nargs="*", metavar="key=value", help="changes of the recipe")
    report = commands.add_parser("report", help="Markdown tables and plots of the JSONs in a folder")
    report.add_argument("--results", type=Path, default=RESULTS)
    report.add_argument("--out", type=Path, help="folder for report.md and the plots; default: the results'")
    commands.add_parser("gpu-tests", parents=[common], help="the tests marked gpu that import no DALI")
    accuracy = commands.add_parser("accuracy", parents=[common], help="whole trainings, ours and timm's train.py")
    accuracy.add_argument("--data", metavar="URI", required=True, help="CIFAR-10 or the like, with a validation split")
    accuracy.add_argument("--timm", type=Path, metavar="FOLDER", help="a checkout of timm's repository, for train.py")
    accuracy.add_argument("--cases", nargs="+", default=[], help="some of the cases; default: all")
    accuracy.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    accuracy.add_argument("--per-class", type=int, metavar="N", help="training images of a class; default: all")
    commands.add_parser("decode", parents=[common, data], help="pixels and speed of decoded JPEGs against PIL's")
    day = commands.add_parser("day", parents=[data], help="everything, the most valuable first; again: it goes on")
    day.add_argument("--device", choices=("cuda",), default="cuda")
    day.add_argument("--minutes", type=float, default=7.0, help="it ends within so many; default: 7")
    day.add_argument("--out", type=Path, default=RESULTS, help="folder of figures.jsonl, day.json and the JSONs")
    day.add_argument("--rehearse", action="store_true", help="every part on the CPU with the smallest model")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "python -m benchmarks") -> int:
    """Runs one command.

    0: success; 1: a test or a part of `day` failed, or a floor did not hold; 2: a mistake; 130: Ctrl-C.
    """
    arguments = build_parser(prog).parse_args(argv)
    if getattr(arguments, "models", None) and "words" in arguments:  # --models also swallows the words after it
        arguments.words += [each for each in arguments.models if "=" in each]
        arguments.models = [each for each in arguments.models if "=" not in each] or None
    try:
        return _run(arguments)
    except (RecipeError, DataError, RunError, argparse.ArgumentTypeError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmarks: stopped; what was known is written", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "report":
        from .report import write_report

        print(write_report(arguments.results, arguments.out or arguments.results))
        return 0
    import torch

    on_cpu = arguments.command in ("floors", "traffic", "streaming", "growth", "accuracy")
    name = arguments.device or ("cuda" if torch.cuda.is_available() and not on_cpu else "cpu")
    name = "cpu" if arguments.command == "day" and arguments.rehearse else name
    if on_cpu and name == "cuda":
        raise RunError(f"--device cuda: expected cpu, where {arguments.command} runs")
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: expected an NVIDIA GPU that torch can use, found none")
    if arguments.command == "day":
        from .day import run_day

        return run_day(name, arguments.rehearse, arguments.out, arguments.minutes, arguments.data)

    from .measure import Session

    device = torch.device(name, 0) if name == "cuda" else torch.device(name)
    models = getattr(arguments, "models", None)
    session = Session(
        arguments.command, device, arguments.quick, arguments.out / _file_name(arguments, name), arguments.minutes,
        arguments.brief,
    )  # fmt: skip
    held = True
    if arguments.command == "throughput":
        from . import throughput

        if not models and session.path.exists():  # models that this run does not reach stay where they are
            session.path = throughput.next_path(session.path)

        throughput.run(session, arguments.mode, models, _batch(arguments.batch))
    elif arguments.command == "engine":
        from . import engine

        engine.run(session, models, arguments.batch, arguments.words, arguments.against)
    elif arguments.command == "loader":
        from . import loader

        loader.run(session, arguments.data, arguments.cases)
    elif arguments.command == "optimizer":
        from . import optimizer

        optimizer.run(session, models)
    elif arguments.command == "gpu-tests":
        from . import gpu_tests

        held = gpu_tests.run(session)
    elif arguments.command == "decode":
        from . import decoding

        decoding.run(session, arguments.data)
    elif arguments.command == "order":
        from . import order

        order.run(session)
    elif arguments.command == "listing":
        from . import listing

        listing.run(session, arguments.images)
    elif arguments.command == "floors":
        from . import floors

        held = floors.run(session, arguments.data, arguments.record)
    elif arguments.command == "streaming":
        from . import streaming

        streaming.run(session, arguments.data, arguments.peers_python, arguments.before)
    elif arguments.command == "accuracy":
        from . import accuracy

        accuracy.run(session, arguments.data, arguments.timm, arguments.cases, arguments.seeds, arguments.per_class)
    elif arguments.command == "growth":
        from . import growth

        growth.run(session, arguments.images or list(growth.SIZES[: 2 if session.quick else None]))
    elif arguments.command == "traffic":
        from . import traffic

        held = traffic.run(session, models, arguments.words, arguments.record, arguments.assemble)
    else:
        from . import end_to_end

        end_to_end.run(session, arguments.data, models, arguments.batch)
    session.save(ended=True)
    session.say(f"wrote {session.path}")
    return 0 if held else 1


def _file_name(arguments: argparse.Namespace, device: str) -> str:
    """A file name for each kind of figure, so that a later part of a day adds to an earlier one."""
    parts = [arguments.command, getattr(arguments, "mode", ""), device]
    parts += [word.replace("@", "-") for word in getattr(arguments, "models", None) or []]
    parts += getattr(arguments, "against", [])
    batch = getattr(arguments, "batch", None)
    parts += [f"batch-{batch}"] if batch else []
    return "-".join(filter(None, [*parts, "quick" if arguments.quick else ""])) + ".json"


def _batch(text: str | None) -> "int | None":
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    if not text.isdigit() or int(text) < 2 or int(text) % 2:
        raise RunError(f"--batch {text}: expected auto or an even number, because mixup pairs images up")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
