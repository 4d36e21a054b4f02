"""Runs the stages of a pipeline; a run can be interrupted anywhere and continued.

TorchX starts the jobs and knows their state. This module decides which stage starts next, or leaves the order to a
queue that can keep it. It records the stages in FOLDER/pipeline.json, which is written atomically.
"""

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from torchx.runner import Runner
from torchx.schedulers.local_scheduler import SignalException
from torchx.specs import AppDryRunInfo, AppState, CfgVal, is_terminal

from deit_fast.runtime.durations import duration
from deit_fast.runtime.files import locked

from .logs import follow_log, log_tail
from .schedulers import find_scheduler
from .stages import Stage, check_unchanged, dryrun_stage, get_app, sort_stages
from .state import PipelineError, Record, deaf, explain, is_written, read_records, remembering, write_records

PATIENCE_SECONDS = 60.0  # for a scheduler that does not answer, or does not yet list a new job


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    runner: Runner,
    scheduler: str,
    cfg: Mapping[str, CfgVal],
    max_parallel: int | None = None,
    poll_seconds: float = 1.0,
    stream: TextIO | None = None,
    watch: bool = True,
) -> int | None:
    """Runs the stages that are not done, and returns an exit status: 0, 1 for a failed stage, 130 if interrupted.

    The jobs of all stages are built before the first one starts. Stages that `folder` records as done are skipped,
    running stages are followed, and the others start when their needs have succeeded, at most `max_parallel` at once. A
    failed stage stops only the stages that need it. Logs of running stages go to `stream`, if given. An interrupt ends
    local jobs, which resume when run again; jobs on a cluster continue.

    A queue such as Slurm's gets all stages at once, each waiting for its needs. Without `watch` they are left to the
    queue, and None is returned unless all were done before. Raises PipelineError before anything is started.
    """
    order = sort_stages(stages)
    # Before any thread follows a log: TorchX parses components, and CPython 3.11's ast.parse may fail in two threads.
    jobs = {stage.name: dryrun_stage(stage, folder, runner, scheduler, cfg) for stage in order}
    with locked(folder, "pipeline.lock", "another run of this pipeline"), remembering() as signals:
        run = _Run(order, jobs, folder, runner, scheduler, dict(cfg), stream, signals)
        try:
            run.attach(poll_seconds)
            if find_scheduler(scheduler).queue:
                run.submit()
                if run.running and not watch:
                    return 1 if run.failed else None
            return run.loop(max_parallel or len(order), poll_seconds)
        except (KeyboardInterrupt, SignalException):
            run.interrupt()
            return 130


@dataclass
class _Run:
    order: list[Stage]
    jobs: dict[str, AppDryRunInfo[Any]]
    """TorchX's job for each stage; a stage starts at most once in a run."""
    folder: Path
    runner: Runner
    scheduler: str
    cfg: dict[str, CfgVal]
    stream: TextIO | None
    signals: list[int]  # that arrived, since exceptions from their handlers may be lost
    records: dict[str, Record] = field(default_factory=dict)
    running: dict[str, Stage] = field(default_factory=dict)
    adopted: set[str] = field(default_factory=set)
    """Stages that an earlier process started."""
    failed: set[str] = field(default_factory=set)
    silent_since: dict[str, float] = field(default_factory=dict)
    """Handles for which the scheduler gives no state, and since when."""
    threads: dict[str, list[threading.Thread]] = field(default_factory=dict)

    def attach(self, poll_seconds: float) -> None:
        """Reads pipeline.json, and finds out which stages are done, still running, or to be started."""
        self.records = read_records(self.folder / "pipeline.json")
        scheduler = find_scheduler(self.scheduler)
        queued = self._find_jobs()
        for stage in self.order:
            record = self.records.get(stage.name)
            handle = queued.get(stage.output)
            if handle and (record is None or (record.state != "succeeded" and record.handle != handle)):
                # A driver was killed after it submitted the job and before it recorded that.
                record = self._record(stage, handle)
            if record is None:
                continue
            state: AppState | None = AppState.SUCCEEDED
            if record.state != "succeeded":
                while (state := self._look(stage, record)) is AppState.UNKNOWN:
                    time.sleep(poll_seconds)
            elif record.result_seen and not is_written(stage.result):
                state = None  # the user removed its result to run it again
            if state is AppState.SUCCEEDED:
                again = f"use another folder, or remove {stage.output} to run it again"
                check_unchanged(stage, record, f"and is done: {again}")
                if rerun := [need for need in stage.needs if not self._done(need)]:
                    why = f"is done but {rerun[0]!r}, which it needs, has to run again"
                    raise PipelineError(f"stage {stage.name!r} {why}: remove {stage.output} too")
                record.succeed(stage.result)
                self._say(stage, "done before")
            elif state is not None and not is_terminal(state):
                if scheduler.queue and (lost := self._lost_needs(stage) or self._replaced_needs(stage)):
                    # It waits for a job that failed or was cancelled; the queue would cancel it a moment later.
                    scheduler.cancel(self.runner, record.handle)
                    record.state = "cancelled"
                    self._say(stage, f"cancelled     {record.handle}: {lost[0]!r} has to run again")
                    continue
                check_unchanged(stage, record, f"and still runs as {record.handle}: let it end, or cancel it")
                record.state = "running"
                self.running[stage.name] = stage
                self.adopted.add(stage.name)
                self._say(stage, f"still there   {record.handle}")
                self._follow(stage, record)
            elif record.state == "running" and state is AppState.FAILED:
                self._report_failure(stage, record, state)
            elif record.state != "failed":
                record.state = "cancelled"
        self._save()

    def submit(self) -> None:
        """Submits all remaining stages to the scheduler's queue."""
        for stage in self.order:
            if stage.name not in self.running and not self._done(stage.name) and not self._lost_needs(stage):
                self._start(stage)

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
            if self.signals:
                raise KeyboardInterrupt
        left = [stage for stage in self.order if not self._done(stage.name)]
        for stage in (each for each in left if each.name not in self.failed):
            self._say(stage, "not started: a stage it needs failed")
        return 1 if left else 0

    def interrupt(self) -> None:
        """Ends local jobs with a checkpoint each, at a second interrupt at once; jobs on a cluster continue."""
        find_scheduler(self.scheduler).stop([self.records[name].handle for name in self.running])
        with deaf():
            for name, stage in self.running.items():
                record = self.records[name]
                scheduler = find_scheduler(record.handle)
                if not scheduler.local:
                    self._say(stage, f"goes on; run this again to follow it, or: torchx cancel {record.handle}")
                    continue
                scheduler.cancel(self.runner, record.handle)
                record.state, record.ended = "cancelled", time.time()
                self._say(stage, "stopped; run this again to continue")
            self._save()

    def _ready(self, stage: Stage) -> bool:
        waiting = stage.name not in self.running and stage.name not in self.failed and not self._done(stage.name)
        return waiting and all(self._done(need) for need in stage.needs)

    def _lost_needs(self, stage: Stage) -> list[str]:
        return [need for need in stage.needs if not self._done(need) and need not in self.running]

    def _replaced_needs(self, stage: Stage) -> list[str]:
        """Needs whose present job is not the one for which this stage's job waits."""
        after = self.records[stage.name].after
        return [n for n in stage.needs if after and n in self.running and self.records[n].handle not in after]

    def _find_jobs(self) -> dict[str, str]:
        """Handles of waiting or running jobs, by output. Of two jobs with one output, the newer one is cancelled."""
        scheduler, stages = find_scheduler(self.scheduler), {stage.output: stage for stage in self.order}
        found = {output: jobs for output, jobs in scheduler.find(self.cfg).items() if output in stages}
        for output, (first, *others) in found.items():
            for other in others:
                scheduler.cancel(self.runner, other)
                self._say(stages[output], f"cancelled     {other}: {first}, which is older, makes the same")
        return {output: jobs[0] for output, jobs in found.items()}

    def _done(self, name: str) -> bool:
        return name in self.records and self.records[name].state == "succeeded"

    def _start(self, stage: Stage) -> None:
        scheduler = find_scheduler(self.scheduler)
        try:
            job = self.jobs[stage.name]
            after = [self.records[need].handle for need in stage.needs if need in self.running]
            scheduler.prepare(job, stage.output, after)
            handle = scheduler.submit(self.runner, job)
        except SignalException:
            raise
        except (Exception, SystemExit) as error:
            self.failed.add(stage.name)
            self._say(stage, f"could not start: {explain(error)}")
            return
        record = self._record(stage, handle, after)
        self.running[stage.name] = stage
        self._save()
        with contextlib.suppress(PipelineError):  # a job submitted by a killed driver may appear only now
            record.handle = self._find_jobs().get(stage.output, handle)
            self._save()
        again = f" (attempt {record.attempt})" if record.attempt > 1 else ""
        waits = f", after {', '.join(stage.needs)}" if self.running.keys() & set(stage.needs) else ""
        self._say(stage, f"{'queued ' if scheduler.queue else 'started'}       {record.handle}{again}{waits}")
        self._follow(stage, record)

    def _record(self, stage: Stage, handle: str, after: Sequence[str] = ()) -> Record:
        role, words = get_app(self.jobs[stage.name]).roles[0], list(stage.arguments)
        attempt = self.records[stage.name].attempt + 1 if stage.name in self.records else 1
        self.records[stage.name] = record = Record(
            "running", stage.component, words, handle, role.name, role.num_replicas, attempt, time.time(), list(after)
        )
        return record

    def _look(self, stage: Stage, record: Record) -> AppState | None:
        """The state of a stage's job: UNKNOWN while the scheduler may still answer, None if there is no such job.

        If the scheduler no longer knows the job, the job's result tells how it ended.
        """
        scheduler, reason = find_scheduler(record.handle), "no such job"
        missing: AppState | None = AppState.UNKNOWN
        try:
            state = scheduler.state(self.runner, record.handle)
            if state not in (None, AppState.UNKNOWN):
                self.silent_since.pop(record.handle, None)
                return state
            missing = scheduler.missing if state is None else AppState.UNKNOWN
        except SignalException:
            raise
        except Exception as error:  # a failed squeue, an API out of reach, a state that TorchX cannot translate
            reason = explain(error)
        if is_written(stage.result, record.started - 2):
            return AppState.SUCCEEDED
        if missing is not AppState.UNKNOWN:
            return missing
        if record.handle not in self.silent_since:
            self._say(stage, f"{self.scheduler} gives no state of {record.handle}: {reason}")
        waited = time.monotonic() - self.silent_since.setdefault(record.handle, time.monotonic())
        return AppState.UNKNOWN if waited < PATIENCE_SECONDS else None

    def _observe(self, stage: Stage) -> None:
        record = self.records[stage.name]
        state = self._look(stage, record)
        if state is not None and not is_terminal(state):
            return
        del self.running[stage.name]
        record.ended = time.time()
        for thread in self.threads.pop(stage.name, []):
            thread.join(timeout=5)  # its last lines come before the line about its end
        if state is AppState.SUCCEEDED:
            record.succeed(stage.result)
            self._say(stage, f"done          {duration(record.ended - record.started)}")
        elif state is None and stage.name in self.adopted:
            record.state = "cancelled"
            self._say(stage, "ended without a result: it is started again")
        elif state is AppState.CANCELLED and self._lost_needs(stage):
            record.state = "cancelled"
        else:
            self.failed.add(stage.name)
            self._report_failure(stage, record, state)
        self.adopted.discard(stage.name)
        self._save()

    def _report_failure(self, stage: Stage, record: Record, state: AppState | None) -> None:
        record.state = "failed"
        spent = duration((record.ended or time.time()) - record.started)
        self._say(stage, f"{state.name if state else 'LOST'}        {spent}   {record.handle}")
        lines = log_tail(self.runner, record)
        if find_scheduler(record.handle).local:
            lines.append(f"(the whole log: {self.folder / 'logs' / stage.name})")
        print("\n".join(f"    {line}" for line in lines), flush=True)

    def _follow(self, stage: Stage, record: Record) -> None:
        if self.stream is not None:
            name, ended = self._padded(stage), lambda: stage.name not in self.running
            self.threads[stage.name] = follow_log(self.runner, name, record, self.stream, ended)

    def _padded(self, stage: Stage) -> str:
        return stage.name.ljust(max(len(each.name) for each in self.order))

    def _say(self, stage: Stage, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {self._padded(stage)}  {text}", flush=True)

    def _save(self) -> None:
        write_records(self.folder / "pipeline.json", self.records)
