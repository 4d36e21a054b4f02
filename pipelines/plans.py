"""The needs of a pipeline's stages, from `deit-fast plan`; --dry-run prints them.

Each training is planned in another process, because plans need torch and pipelines do not.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from deit_fast.runtime.object_store import is_remote
from deit_fast.zoo.devices import DEVICES

from .stages import Stage
from .state import PipelineError

UNNAMED_GIB = 80
"""Assumed memory of a cluster's GPU of unknown kind."""


def describe_stages(stages: Sequence[Stage], where: Mapping[str, object], local: bool) -> list[str]:
    """For each training a heading and its needs; for an evaluation one line.

    where: the components' arguments, of which j and h give the number and kind of processes. local: whether jobs run on
    this machine, so that its GPUs or cores are planned with. Raises PipelineError where a stage cannot be planned.
    """
    nodes, _, processes = str(where.get("j", "1x1")).rpartition("x")
    count, kind = int(nodes or 1) * int(processes), str(where.get("h", ""))
    lines = []
    for stage in stages:
        lines.append(f"=== {stage.name}" + (f", after {', '.join(stage.needs)}" if stage.needs else ""))
        given = dict(zip(stage.arguments, stage.arguments[1:], strict=False))
        if "--recipe" not in given:
            lines += [f"evaluates {given['--checkpoint']}", ""]
            continue
        words = list(stage.arguments[stage.arguments.index("--out") + 2 :])
        if is_remote(given["--data"]) or _is_seen(given["--data"]):
            words += [word for key in ("--data", "--val", "--labels") if key in given for word in (key, given[key])]
        else:
            lines.append(f"({given['--data']} is not to be seen from here: the number of images is the published one)")
        if kind in DEVICES:
            words += ["--gpus", f"{count}x{kind}"]
        elif not local:
            words += ["--gpus", str(count), "--memory", str(UNNAMED_GIB)]
            lines.append(f"(no -h names the kind of GPU: planned with {UNNAMED_GIB} GiB each)")
        lines += [plan_stage(stage, [given["--recipe"], *words], count), ""]
    return lines


def plan_stage(stage: Stage, words: Sequence[str], processes: int) -> str:
    """The output of `deit-fast plan` for these words, with `processes` processes on this machine's cores.

    Raises PipelineError with the command's message.
    """
    command = [sys.executable, "-m", "deit_fast.cli", "plan", *words]
    environment = {**os.environ, "WORLD_SIZE": str(processes)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("deit-fast: ")
        raise PipelineError(f"stage {stage.name!r}: {reason}")
    return done.stdout.rstrip()


def _is_seen(data: str) -> bool:
    """Whether the data exist here; for shards with a range or a glob, whether their folder has any content."""
    place = data if not any(sign in data for sign in "{*?[") else os.path.dirname(data)
    return os.path.exists(place or ".")
