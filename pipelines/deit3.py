"""The published DeiT III trainings as pipelines: pretraining, finetuning at higher resolutions, evaluations of each.

    python -m pipelines.deit3 --size base --data /data/imagenet --out runs/base -j 1x8

A second run with the same --out continues with the stages that are left or still running. On Slurm all stages are
queued at once and the command returns.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from pprint import pformat
from typing import Any, NoReturn

try:
    from torchx.runner import get_runner
    from torchx.schedulers import get_scheduler_factories
    from torchx.schedulers.local_scheduler import SignalException

    from deit_fast.runtime.errors import RecipeError, RunError
    from deit_fast.runtime.object_store import check_writable, is_remote, local_place
    from deit_fast.runtime.table import markdown_table

    from .dag import run_stages
    from .manifests import write_manifests
    from .options import component_defaults, scheduler_options
    from .plans import describe_stages
    from .schedulers import find_scheduler
    from .stages import Stage, dryrun_stage, get_app, sort_stages
    from .state import PipelineError, read_result
    from .trainings import COMPONENTS, PIPELINES, build_stages, name_trainings
except KeyboardInterrupt:  # these imports take a second, and TorchX's entry points take longer
    print("deit-fast: interrupted before anything was started; run the same command again", file=sys.stderr)
    sys.exit(130)

WHERE: dict[str, type] = {
    **dict.fromkeys(("j", "h", "image", "env", "mounts", "overlay"), str),
    **dict.fromkeys(("cpu", "gpu", "memMB", "max_retries", "rdzv_port"), int),
}
"""Component arguments that apply to every stage, passed on unchanged."""


def format_report(stages: Sequence[Stage], results: Sequence[Mapping[str, Any]], here: str = "") -> str:
    """The stages' results as a Markdown table; `-` for what a result lacks, as one unreadable from this machine does.

    here: a folder, whose path is left out of the paths below it.
    """
    columns = {
        "resolution": ("image_size", "{:.0f}"),
        "top-1": ("top1", "{:.2f}"),
        "top-5": ("top5", "{:.2f}"),
        "images/s": ("images_per_second", "{:.1f}"),
        "minutes": ("minutes", "{:.1f}"),
        "checkpoint": ("checkpoint", "{}"),
    }
    rows = []
    for stage, result in zip(stages, results, strict=True):
        found = [(result.get(key), form) for key, form in columns.values()]
        cells = ["-" if value is None else form.format(value) for value, form in found]
        rows.append([stage.name, *(_from(here, cell) for cell in cells)])
    return "\n".join(markdown_table(["stage", *columns], rows))


def _from(here: str, path: str) -> str:
    """The path as seen from the folder `here`, if it is below it."""
    return path.removeprefix(f"{here.rstrip('/')}/") if here else path


def _state_folder(given: str | None, out: str) -> Path:
    """This machine's folder for pipeline.json; by default `out`, or for an `out` in a store the cache folder's copy.

    Raises PipelineError for a URI.
    """
    if is_remote(given):
        raise PipelineError(f"--state {given}: expected a folder on this machine, which --out need not be")
    return local_place(out) if is_remote(out) and not given else Path(os.path.abspath(given or out))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"deit-fast: {message} (see --help)\n")


def build_parser(prog: str = "python -m pipelines.deit3") -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        add_help=False,  # -h is a component's argument
        description="Pretrain, finetune and evaluate a DeiT III model; run again with the same --out, it continues.",
        epilog=f"Example: {prog} --size small --data /data/imagenet --out runs/small -j 1x8. Stages: "
        + "; ".join(f"{size}: {', '.join(names)}" for size, names in PIPELINES.items())
        + "; and "
        "evaluate_STAGE of each.",
    )
    parser.add_argument("--help", action="help", help="show this and exit")
    parser.add_argument("--size", choices=PIPELINES, help="of the published trainings")
    parser.add_argument(
        "--recipe", default="", metavar="NAME,...",
        help="in place of a size: trainings of these recipes, each from the weights of the one before",
    )  # fmt: skip
    parser.add_argument("--init", default="", help="weights to start from, with --recipe")
    parser.add_argument("--data", required=True, help="training images: an image folder, shards or their URI")
    parser.add_argument(
        "--pretrain-data", default="", help="for the sizes on ImageNet-21k: its images, with a val split of their own"
    )
    parser.add_argument(
        "--val", default="", metavar="DATA|SHARE",
        help="validation images, or the share of each class to hold out; default: those beside the training images",
    )  # fmt: skip
    parser.add_argument("--labels", default="", help="file of labels of validation images without class folders")
    parser.add_argument(
        "--out", required=True, help="folder of all run folders, on storage every job shares or in an object store"
    )
    parser.add_argument(
        "--state", help="this machine's folder for pipeline.json, logs and report.md; default: --out, or, of one in "
        "an object store, its place in the cache folder",
    )  # fmt: skip
    parser.add_argument("--scheduler", default="local_cwd", choices=get_scheduler_factories().keys())
    parser.add_argument("--cfg", default="", metavar="KEY=VALUE,...", help="scheduler options (torchx runopts)")
    parser.add_argument(
        "--max-parallel",
        type=int,
        metavar="N",
        help="stages at once. Default: 1 on this machine, whose cores and GPUs one job takes whole; on a cluster every "
        "stage whose needs are done, so an evaluation runs beside the next training (on Slurm always)",
    )
    parser.add_argument(
        "--watch", action="store_true", help="follow the jobs on Slurm, too, whose queue starts them without that"
    )
    parser.add_argument("--quiet", action="store_true", help="do not follow the logs of the stages that run")
    parser.add_argument("--dry-run", action="store_const", const="plan", help="print what every stage takes, no more")
    # A separate option: if --dry-run had an optional value, the word after it would be taken for the value.
    parser.add_argument(
        "--dry-run=full", dest="dry_run", action="store_const", const="full", help="print every job as TorchX has it"
    )
    parser.add_argument(
        "--manifests", metavar="FOLDER",
        help="write the YAML of every job for kubectl, a file each, and start nothing; --cfg: "
        "kind=jobset|trainjob|volcano and the other options of the scheduler kueue",
    )  # fmt: skip
    jobs = parser.add_argument_group("every job's arguments, as in: torchx run deit.pretrain --help")
    jobs.add_argument("-j", "--j", metavar="NODESxPROCESSES", help="one process per GPU; default: 1x1")
    jobs.add_argument("-h", "--h", metavar="NAME", help="named resource of a node: h200, h100, a100, cpu_small, ...")
    for name, kind in list(WHERE.items())[2:]:
        jobs.add_argument(f"--{name}", type=kind, metavar=kind.__name__.upper())
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="[STAGE:]section.key=value",
        help="changes every training's recipe, or one stage's: schedule.epochs=400 pretrain:optim.lr=3e-3",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "python -m pipelines.deit3") -> int:
    """Runs the command line. 0: all done, 1: a stage failed, 2: a bad value before any start, 130: interrupted."""
    try:
        options = build_parser(prog).parse_intermixed_args(argv)
        logging.getLogger("torchx").setLevel(logging.ERROR)  # its hints would repeat with every dry run
        warnings.filterwarnings("ignore", r"\s*Role \w+ configured with restarts")  # about a bug in Volcano 1.4
        out = options.out.rstrip("/") if is_remote(options.out) else os.path.abspath(options.out)
        state = _state_folder(options.state, out)
        given = {name: getattr(options, name) for name in WHERE if getattr(options, name) is not None}
        where = [f"--{name}={value}" for name, value in given.items()]
        scheduler = find_scheduler(options.scheduler)
        limit = options.max_parallel if options.max_parallel is not None else 1 if scheduler.local else None
        if not options.out.strip():
            raise PipelineError("--out '': expected a folder")
        if is_remote(out):
            check_writable(out)
        if not options.data.strip():
            raise PipelineError("--data '': expected an image folder or shards")
        if limit is not None and limit < 1:
            raise PipelineError(f"--max-parallel={limit}: expected at least 1")
        if limit is not None and scheduler.queue:
            raise PipelineError(
                f"--max-parallel={limit}: expected none with {options.scheduler}, whose queue has every stage at once"
            )
        if not options.val and os.path.basename(options.data.rstrip("/")).startswith("train"):
            raise PipelineError(
                f"--data {options.data}: names training images alone; expected --val for the evaluations"
            )
        title, trainings = name_trainings(options.size, options.recipe, options.init)
        if bool(options.pretrain_data) != title.endswith("_21k"):
            expected = "the images of ImageNet-21k" if title.endswith("_21k") else "none"
            raise PipelineError(f"--pretrain-data={options.pretrain_data!r}: expected {expected} for {title}")
        stages = build_stages(
            title, options.data, out, options.val, options.overrides, where, options.pretrain_data, options.labels,
            trainings, options.init,
        )  # fmt: skip
        stages = sort_stages(stages)
        if options.manifests:
            print("\n".join(write_manifests(stages, Path(options.manifests), options.cfg)))
            return 0
        with get_runner(component_defaults=component_defaults(COMPONENTS)) as runner:
            cfg = scheduler_options(runner, options.scheduler, options.cfg)
            if options.dry_run:
                jobs = [dryrun_stage(stage, state, runner, options.scheduler, cfg) for stage in stages]
                if options.dry_run == "plan":
                    print("\n".join(describe_stages(stages, given, scheduler.local)))
                    return 0
                for stage, job in zip(stages, jobs, strict=True):
                    print(f"=== {stage.name}" + (f", after {', '.join(stage.needs)}" if stage.needs else ""))
                    print(f"{pformat(asdict(get_app(job)), width=120)}\n{job}\n")
                return 0
            stream = None if options.quiet else sys.stderr
            poll_seconds = 1.0 if scheduler.local else 10.0
            status = run_stages(
                stages, state, runner, options.scheduler, cfg, limit, poll_seconds, stream, options.watch
            )
    except (RunError, RecipeError) as error:
        print(f"deit-fast: {error}", file=sys.stderr)
        return error.status
    except (KeyboardInterrupt, SignalException):  # before the first job
        print("deit-fast: interrupted before anything was started; run the same command again", file=sys.stderr)
        return 130
    if status is None:
        print(f"\nIn {scheduler.queue}. Run this again for what became of it, with --watch to follow it.")
        return 0
    if status == 0:
        results, here = [read_result(stage.result) for stage in stages], os.getcwd()
        report = format_report(stages, results)
        (state / "report.md").write_text(f"# DeiT III, {title}\n\n{report}\n", encoding="utf-8")
        shown, table = _from(here, out), _from(here, str(state / "report.md"))
        print(f"\n{format_report(stages, results, here)}\n\nrun folder   {shown}\nreport       {table}")
        print(f"TensorBoard  tensorboard --logdir {shown}\nplots        {shown}/*/curves.png")
    return status


if __name__ == "__main__":
    sys.exit(main())
