"""The stages of a pipeline: calls of TorchX components, their needs, and the jobs that they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from torchx.runner import Runner
from torchx.schedulers.local_scheduler import SignalException
from torchx.specs import AppDef, AppDryRunInfo, CfgVal

from .schedulers import find_scheduler
from .state import PipelineError, Record, explain


@dataclass(frozen=True)
class Stage:
    """One job of a pipeline: a call of a TorchX component."""

    name: str
    component: str
    """The component's address for TorchX: `FILE.py:FUNCTION` or a registered name."""
    arguments: tuple[str, ...]
    """The computation, as words of the component's command line. They must not change once the stage is done."""
    needs: tuple[str, ...] = ()
    """Stages that have to succeed first."""
    where: tuple[str, ...] = ()
    """Place and number of processes, as words of the component's command line before `arguments`; they may change."""
    output: str = ""
    """Folder or file that the stage makes; the user removes it to run the stage again."""
    result: str = ""
    """JSON file inside or at `output` that exists when the stage has succeeded, if the stage leaves one."""


def sort_stages(stages: Sequence[Stage]) -> list[Stage]:
    """The stages in an order in which each follows its needs.

    Raises PipelineError for a duplicate name, an unknown need or a cycle.
    """
    by_name = {stage.name: stage for stage in stages}
    if len(by_name) < len(stages):
        names = [stage.name for stage in stages]
        raise PipelineError(f"stage {next(n for n in names if names.count(n) > 1)!r}: defined twice")
    for stage in stages:
        for need in stage.needs:
            if need not in by_name:
                raise PipelineError(f"stage {stage.name!r} needs {need!r}: expected one of {', '.join(by_name)}")
    try:
        return [by_name[name] for name in TopologicalSorter({s.name: s.needs for s in stages}).static_order()]
    except CycleError as error:
        raise PipelineError(f"stages need each other in a circle: {' -> '.join(error.args[1])}") from None


def dryrun_stage(
    stage: Stage, folder: Path, runner: Runner, scheduler: str, cfg: Mapping[str, CfgVal]
) -> AppDryRunInfo[Any]:
    """The job that a stage would submit; local jobs log below `folder`.

    Raises PipelineError; a component that refuses its arguments raises SystemExit.
    """
    if find_scheduler(scheduler).local:  # else TorchX makes a temporary log_dir, and deletes it
        cfg = {**cfg, "log_dir": str(folder / "logs" / stage.name)}
    try:
        return runner.dryrun_component(stage.component, [*stage.where, *stage.arguments], scheduler, cfg=cfg)
    except SignalException:  # LocalScheduler's interrupt is an ordinary exception
        raise
    except Exception as error:  # components, plugins and schedulers' clients may raise anything
        raise PipelineError(f"stage {stage.name!r}: {explain(error)}") from error


def get_app(job: AppDryRunInfo[Any]) -> AppDef:
    """The app from which TorchX makes the job."""
    app: AppDef = getattr(job, "app", None) or job._app  # nightlies; 0.7.0
    return app


def check_unchanged(stage: Stage, record: Record, remedy: str) -> None:
    """Raises PipelineError, ending with `remedy`, if the stage's job had other words than the stage has now."""
    before, now = record.arguments, list(stage.arguments)
    if before != now:
        dropped = " ".join(word for word in before if word not in now) or "fewer words"
        added = " ".join(word for word in now if word not in before) or "fewer words"
        raise PipelineError(f"stage {stage.name!r} was run with {dropped}, not {added}, {remedy}")
