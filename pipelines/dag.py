"""Stages of TorchX components, their order, and a run of them that can be stopped anywhere and continued.

The jobs, their processes and their queues are TorchX's. This module decides what to start next and remembers it in
FOLDER/pipeline.json, which is written whole or not at all.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TextIO

from torchx.runner import Runner
from torchx.schedulers.local_scheduler import SignalException
from torchx.specs import AppDryRunInfo, AppState, CfgVal, is_terminal

from deit_fast.files import locked

from .logs import follow_log, log_tail
from .state import PipelineError, Record, deaf, explain, find_processes, read_records, write_records

PATIENCE_SECONDS = 60.0  # for a scheduler that fails to answer, or does not list a job it has only just taken


@dataclass(frozen=True)
class Stage:
    """One job of a pipeline: a call of a TorchX component."""

    name: str
    component: str
    """Address TorchX knows: `FILE.py:FUNCTION` or a registered name."""
    arguments: tuple[str, ...]
    """What the stage computes, as the component's command line. Not to change once the stage is done."""
    needs: tuple[str, ...] = ()
    """Stages that have to succeed first."""
    where: tuple[str, ...] = ()
    """Where and on how many, as the component's command line; it precedes `arguments` and may change at any time."""
    output: str = ""
    """Folder or file the stage makes: what to remove for it to run again."""
    result: str = ""
    """JSON file inside or at `output` that exists when the stage has succeeded, if it leaves one."""


def sort_stages(stages: Sequence[Stage]) -> list[Stage]:
    """The stages, each after its needs.

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
) -> AppDryRunInfo[object]:
    """The job a stage would submit; local ones log under `folder`.

    Raises PipelineError; a component that refuses its arguments raises SystemExit.
    """
    if scheduler.startswith("local"):  # which makes a temporary log_dir where it is given none, and deletes it
        cfg = {**cfg, "log_dir": str(folder / "logs" / stage.name)}
    try:
        return runner.dryrun_component(stage.component, [*stage.where, *stage.arguments], scheduler, cfg=cfg)
    except SignalException:  # LocalScheduler's interrupt is an ordinary exception
        raise
    except Exception as error:  # whatever a component, a plugin or a scheduler's client makes of its configuration
        raise PipelineError(f"stage {stage.name!r}: {explain(error)}") from error


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    runner: Runner,
    scheduler: str,
    cfg: Mapping[str, CfgVal],
    max_parallel: int | None = None,
    poll_seconds: float = 1.0,
    stream: TextIO | None = None,
) -> int:
    """Runs the stages, or what is left of them, and returns an exit status: 0, 1 for a failed stage, 130 interrupted.

    Every stage is dry-run before the first starts. Stages recorded in `folder` as done are skipped, those still running
    are followed, the rest start as their needs succeed, at most `max_parallel` at once. A failed stage stops those that
    need it and no others. Logs of running stages go to `stream`, if given. Local jobs end with an interrupt (they
    resume when run again), jobs on a cluster go on.

    Raises PipelineError before anything is started.
    """
    order = sort_stages(stages)
    for stage in order:
        dryrun_stage(stage, folder, runner, scheduler, cfg)
    with locked(folder, "pipeline.lock", "another run of this pipeline"):
        run = _Run(order, folder, runner, scheduler, dict(cfg), stream)
        try:
            run.attach(poll_seconds)
            return run.loop(max_parallel or len(order), poll_seconds)
        except (KeyboardInterrupt, SignalException):
            run.interrupt()
            return 130


@dataclass
class _Run:
    order: list[Stage]
    folder: Path
    runner: Runner
    scheduler: str
    cfg: dict[str, CfgVal]
    stream: TextIO | None
    records: dict[str, Record] = field(default_factory=dict)
    running: dict[str, Stage] = field(default_factory=dict)
    adopted: set[str] = field(default_factory=set)
    """Stages an earlier process started; the local scheduler of this one does not know their jobs."""
    failed: set[str] = field(default_factory=set)
    silent_since: dict[str, float] = field(default_factory=dict)
    """Handles the scheduler gives no state for, and since when."""
    threads: dict[str, list[threading.Thread]] = field(default_factory=dict)

    @property
    def local(self) -> bool:
        return self.scheduler.startswith("local")

    def attach(self, poll_seconds: float) -> None:
        """Reads pipeline.json and settles what is done, what still runs and what is to be started."""
        self.records = read_records(self.folder / "pipeline.json")
        for stage in self.order:
            record = self.records.get(stage.name)
            if record is None:
                continue
            if record.state == "succeeded" and not (record.result_seen and not Path(stage.result).exists()):
                _compare(stage, record, f"and is done: use another folder, or remove {stage.output} to run it again")
                if rerun := [need for need in stage.needs if not self._done(need)]:
                    raise PipelineError(
                        f"stage {stage.name!r} is done but {rerun[0]!r}, which it needs, has to run again: "
                        f"remove {stage.output} too"
                    )
                self._say(stage, "done before")
                continue
            while (state := self._look(stage, record)) is AppState.UNKNOWN:
                time.sleep(poll_seconds)
            if state is not None and (state is AppState.SUCCEEDED or not is_terminal(state)):
                _compare(stage, record, f"and still runs as {record.handle}: let it end, or cancel it")
                record.state = "running"
                self.running[stage.name] = stage
                self.adopted.add(stage.name)
                self._say(stage, f"still there   {record.handle}")
                self._follow(stage, record)
            elif record.state != "failed":
                record.state = "cancelled"

    def loop(self, max_parallel: int, poll_seconds: float) -> int:
        while True:
            for stage in list(self.running.values()):
                self._observe(stage)
            for stage in self.order:
                if len(self.running) < max_parallel and self._ready(stage):
                    self._start(stage)
            if not self.running and not any(self._ready(stage) for stage in self.order):
                break
            time.sleep(poll_seconds)
        left = [stage for stage in self.order if not self._done(stage.name)]
        for stage in left:
            if stage.name not in self.failed:
                self._say(stage, "not started: a stage it needs failed")
        return 1 if left else 0

    def interrupt(self) -> None:
        """Ends local jobs, which LocalScheduler gives ten seconds to do so; jobs on a cluster stay."""
        with deaf():
            for name, stage in self.running.items():
                record = self.records[name]
                if not self.local:
                    self._say(stage, f"goes on; run this again to follow it, or: torchx cancel {record.handle}")
                    continue
                if name in self.adopted:
                    for pid in find_processes(record.handle):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGTERM)
                else:
                    self.runner.cancel(record.handle)
                record.state, record.ended = "cancelled", time.time()
                self._say(stage, "stopped; run this again to continue")
            self._save()

    def _ready(self, stage: Stage) -> bool:
        waiting = stage.name not in self.running and stage.name not in self.failed and not self._done(stage.name)
        return waiting and all(self._done(need) for need in stage.needs)

    def _done(self, name: str) -> bool:
        return name in self.records and self.records[name].state == "succeeded"

    def _start(self, stage: Stage) -> None:
        try:
            info = dryrun_stage(stage, self.folder, self.runner, self.scheduler, self.cfg)
            handle = self.runner.schedule(info)
        except SignalException:
            raise
        except (Exception, SystemExit) as error:
            self.failed.add(stage.name)
            self._say(stage, f"could not start: {explain(error)}")
            return
        app = self.runner.describe(handle)
        role, replicas = (app.roles[0].name, app.roles[0].num_replicas) if app else ("", 0)
        attempt = self.records[stage.name].attempt + 1 if stage.name in self.records else 1
        self.records[stage.name] = record = Record(
            "running", stage.component, list(stage.arguments), handle, role, replicas, attempt, time.time()
        )
        self.running[stage.name] = stage
        self._save()
        self._say(stage, f"started       {handle}" + (f" (attempt {attempt})" if attempt > 1 else ""))
        self._follow(stage, record)

    def _look(self, stage: Stage, record: Record) -> AppState | None:
        """The state of a stage's job: UNKNOWN while the scheduler may yet answer, None when there is no such job.

        A killed driver leaves local jobs running, unknown to the next driver's scheduler: their processes are found by
        the handle in their environment, and once they are gone the result tells how they ended.
        """
        reason = "no such job"
        try:
            status = self.runner.status(record.handle)
            if status is not None and status.state is not AppState.UNKNOWN:
                self.silent_since.pop(record.handle, None)
                return status.state
        except SignalException:
            raise
        except Exception as error:  # a failed squeue, an API that is away, a state TorchX cannot translate
            reason = explain(error)
        if self.local and find_processes(record.handle):
            return AppState.RUNNING
        if stage.result and Path(stage.result).exists() and Path(stage.result).stat().st_mtime >= record.started - 2:
            return AppState.SUCCEEDED
        if self.local:
            return None
        if record.handle not in self.silent_since:
            self._say(stage, f"{self.scheduler} gives no state of {record.handle}: {reason}")
        waited = time.time() - self.silent_since.setdefault(record.handle, time.time())
        return AppState.UNKNOWN if waited < PATIENCE_SECONDS else None

    def _observe(self, stage: Stage) -> None:
        record = self.records[stage.name]
        state = self._look(stage, record)
        if state is not None and not is_terminal(state):
            return
        del self.running[stage.name]
        record.ended = time.time()
        for thread in self.threads.pop(stage.name, []):
            thread.join(timeout=5)  # its last lines belong before the news of its end
        minutes = f"{(record.ended - record.started) / 60:.1f} min"
        if state is AppState.SUCCEEDED:
            record.state, record.result_seen = "succeeded", bool(stage.result) and Path(stage.result).exists()
            self._say(stage, f"done          {minutes}")
        elif state is None and stage.name in self.adopted:
            record.state = "cancelled"
            self._say(stage, "ended without a result: it is started again")
        else:
            record.state = "failed"
            self.failed.add(stage.name)
            self._say(stage, f"{state.name if state else 'LOST'}        {minutes}   {record.handle}")
            lines = log_tail(self.runner, record)
            if self.local:
                lines.append(f"(the whole log: {self.folder / 'logs' / stage.name})")
            print("\n".join(f"    {line}" for line in lines), flush=True)
        self.adopted.discard(stage.name)
        self._save()

    def _follow(self, stage: Stage, record: Record) -> None:
        if self.stream is not None and not (self.local and stage.name in self.adopted):
            self.threads[stage.name] = follow_log(self.runner, stage.name, record, self.stream, self.local)

    def _say(self, stage: Stage, text: str) -> None:
        width = max(len(stage.name) for stage in self.order)
        print(f"{time.strftime('%H:%M:%S')}  {stage.name:<{width}}  {text}", flush=True)

    def _save(self) -> None:
        write_records(self.folder / "pipeline.json", self.records)


def _compare(stage: Stage, record: Record, remedy: str) -> None:
    before, now = record.arguments, list(stage.arguments)
    if before != now:
        dropped = " ".join(word for word in before if word not in now) or "fewer words"
        added = " ".join(word for word in now if word not in before) or "fewer words"
        raise PipelineError(f"stage {stage.name!r} was run with {dropped}, not {added}, {remedy}")
