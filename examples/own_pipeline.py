"""A pipeline of one's own: the same recipe with several seeds, an evaluation of each, and their mean.

    python examples/own_pipeline.py DATA OUT --recipe demo_pretrain --seeds 0,1,2 schedule.epochs=5

A stage is a call of a TorchX component with what it needs first, and any component will do: those of deit_fast as here,
`FILE.py:FUNCTION` of your own, or TorchX's `utils.sh`. With --scheduler slurm, kubernetes or kueue the same stages run
on a cluster. Started again with the same words, the pipeline goes on with what is left.
"""

import argparse
import json
import logging
import os
import statistics
import sys
from pathlib import Path

from deit_fast.pipelines.dag import run_stages
from deit_fast.pipelines.options import component_defaults, scheduler_options
from deit_fast.pipelines.schedulers import find_scheduler
from deit_fast.pipelines.stages import Stage, dryrun_stage
from deit_fast.pipelines.trainings import COMPONENTS
from torchx.runner import get_runner
from torchx.schedulers import get_scheduler_factories

from deit_fast.runtime.errors import RecipeError, RunError


def seeded_stages(recipe: str, seeds: list[int], data: str, out: str, words: list[str]) -> list[Stage]:
    """A training and its evaluation for each seed; the trainings need nothing, each evaluation its training."""
    stages = []
    for seed in seeds:
        folder = f"{out}/seed{seed}"
        scores = f"{folder}/evaluation.json"
        stages += [
            Stage(
                name=f"train_{seed}",
                component=f"{COMPONENTS}:pretrain",
                arguments=("--recipe", recipe, "--data", data, "--out", folder, f"run.seed={seed}", *words),
                output=folder,
                result=f"{folder}/result.json",
            ),
            Stage(
                name=f"evaluate_{seed}",
                component=f"{COMPONENTS}:evaluate",
                arguments=("--checkpoint", f"{folder}/checkpoints/last.pt", "--data", data, "--out", scores),
                needs=(f"train_{seed}",),
                output=scores,
                result=scores,
            ),
        ]
    return stages


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=os.path.abspath)
    parser.add_argument("--recipe", default="demo_pretrain")
    parser.add_argument("--seeds", default="0,1,2", metavar="SEED,...")
    parser.add_argument("--scheduler", default="local_cwd", choices=get_scheduler_factories())
    parser.add_argument("--cfg", default="", metavar="KEY=VALUE,...", help="scheduler options (torchx runopts)")
    parser.add_argument("--dry-run", action="store_true", help="print each job, and start none")
    parser.add_argument("words", nargs="*", metavar="section.key=value", help="changes of the recipe")
    arguments = parser.parse_intermixed_args()
    logging.getLogger("torchx").setLevel(logging.ERROR)
    data = os.path.abspath(arguments.data)  # a job may run in another folder
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    stages = seeded_stages(arguments.recipe, seeds, data, arguments.out, arguments.words)
    try:
        with get_runner(component_defaults=component_defaults(COMPONENTS)) as runner:
            cfg = scheduler_options(runner, arguments.scheduler, arguments.cfg)
            if arguments.dry_run:
                for stage in stages:
                    print(stage.name, dryrun_stage(stage, Path(arguments.out), runner, arguments.scheduler, cfg))
                return 0
            at_once = 1 if find_scheduler(arguments.scheduler).local else None
            status = run_stages(stages, Path(arguments.out), runner, arguments.scheduler, cfg, at_once)
    except (RecipeError, RunError) as error:
        print(f"own_pipeline: {error}", file=sys.stderr)
        return error.status
    if status == 0:
        scores = [json.loads(Path(stage.result).read_text())["top1"] for stage in stages[1::2]]
        spread = f" +- {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        print(f"top-1 of {len(scores)} seeds: {statistics.mean(scores):.2f} %{spread}")
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
