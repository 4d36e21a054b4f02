"""Slurm, whose queue can hold jobs until the jobs before them have succeeded.

TorchX passes on few of sbatch's options. It cannot read the state of a cancelled job (0.7.0) or of a pending one
(nightly releases, with Slurm before 23).
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import psutil
from torchx.runner import Runner
from torchx.schedulers.api import DescribeAppResponse, Stream
from torchx.schedulers.slurm_scheduler import SlurmBatchRequest, SlurmScheduler
from torchx.specs import AppDryRunInfo, AppState, CfgVal

from deit_fast.runtime.errors import one_line

from ..state import PipelineError
from . import Scheduler, as_text

SIGNAL = "USR1@120"  # a checkpoint and an orderly end take seconds; Slurm may send it a minute early
ORPHAN_SECONDS = 300.0  # an sbatch without a controller gives up after this time
_MARK = "deit-fast:"
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_FAILED = {"BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}


class Slurm(Scheduler):
    """Methods raise PipelineError where Slurm does not answer."""

    queue = "Slurm's queue"

    def prepare(self, job: AppDryRunInfo[SlurmBatchRequest], output: str, after: Sequence[str]) -> None:
        """Lets a job that makes `output` wait in the queue for the jobs with the handles `after`.

        It starts when all of them have succeeded, and is cancelled if one fails. If it has a time limit, it gets the
        signal in $SBATCH_SIGNAL, by default SIGNAL, shortly before the limit. A restart appends to the logs of the
        start before, unless $SBATCH_OPEN_MODE is set otherwise.
        """
        command = job.request.cmd
        comments = [word for word in command if word.startswith("--comment=")]  # the user's comment comes first
        command += [" ".join([*(comments or ["--comment="]), _MARK + output]).replace("= ", "=")]
        if after:
            command += [f"--dependency=afterok:{':'.join(map(_id, after))}", "--kill-on-invalid-dep=yes"]
        if "SBATCH_SIGNAL" not in os.environ:
            command += [f"--signal={SIGNAL}"]
        if "SBATCH_OPEN_MODE" not in os.environ:
            command += ["--open-mode=append"]

    def submit(self, runner: Runner, job: AppDryRunInfo[SlurmBatchRequest]) -> str:
        """Submits the job. Raises PipelineError with sbatch's own message where it refuses the job."""
        with tempfile.NamedTemporaryFile("r", errors="replace") as said:
            job.request.cmd[:0] = ["sh", "-c", 'exec "$@" 2>"$0"', said.name]
            try:
                handle = runner.schedule(job)
            except subprocess.CalledProcessError as error:
                raise PipelineError(one_line(said.read()) or f"sbatch: exit status {error.returncode}") from error
            sys.stderr.write(said.read())  # sbatch's warnings
            return handle

    def find(self, cfg: Mapping[str, CfgVal]) -> dict[str, list[str]]:
        """Also finds jobs of an sbatch that outlived its driver on this machine, after waiting for its end."""
        _wait_for_orphans()
        jobs: dict[int, str] = {}
        # A job that has ended may still be COMPLETING.
        words = ("--me", "--noheader", "--states", "PENDING,RUNNING,SUSPENDED", "--format", "%i %k")
        for line in _ask("squeue", *words).splitlines():
            job, _, comment = line.partition(" ")
            if _MARK in comment:
                jobs[int(re.split(r"[+_]", job)[0])] = comment.partition(_MARK)[2].strip()
        return {
            output: [f"slurm://torchx/{job}" for job in sorted(jobs) if jobs[job] == output]
            for output in set(jobs.values())
        }

    def state(self, runner: Runner, handle: str) -> AppState | None:
        return _job_state(handle)

    def log(self, runner: Runner, handle: str, role: str, replica: int) -> Iterable[str]:
        """The lines that a node's processes have printed to stderr."""
        return map(as_text, _Logs("torchx").log_iter(_id(handle), role, replica))

    def follow(
        self, runner: Runner, handle: str, role: str, stream: Stream | None, ended: Callable[[], bool]
    ) -> Iterable[str]:
        return map(as_text, _Logs("torchx").log_iter(_id(handle), role, should_tail=True))

    def cancel(self, runner: Runner, handle: str) -> None:
        _ask("scancel", _id(handle))


def _job_state(handle: str) -> AppState | None:
    """The common state of all parts of a job; None for an unknown job."""
    try:
        lines = _ask("squeue", "--noheader", "--states", "all", "--jobs", _id(handle), "--format", "%T").split("\n")
    except PipelineError:  # squeue forgets a job minutes after its end
        lines = []
    if not any(lines):
        lines = _ask("sacct", "-X", "--noheader", "--parsable2", "--jobs", _id(handle), "--format", "State").split("\n")
    states = {line.split()[0] for line in lines if line.strip()}  # without the UID in "CANCELLED by UID"
    if not states:
        return None
    if left := states - _FAILED - {"COMPLETED", "CANCELLED"}:
        return AppState.PENDING if left <= _WAITING else AppState.RUNNING
    if states & _FAILED:
        return AppState.FAILED
    return AppState.CANCELLED if "CANCELLED" in states else AppState.SUCCEEDED


def _wait_for_orphans() -> None:
    """Waits for submissions of pipelines whose driver was killed, because their jobs are not in the queue yet."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while time.monotonic() < deadline:
        each = psutil.process_iter(["name", "cmdline", "uids"])
        orphans = [
            process.pid
            for process in each
            if process.info["name"] == "sbatch"
            and process.info["uids"].real == os.getuid()
            and any(_MARK in word for word in process.info["cmdline"] or [])
        ]
        if not orphans:
            return
        time.sleep(0.5)


class _Logs(SlurmScheduler):
    """TorchX's reader of logs, which asks for the state of a job first."""

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        state = _job_state(app_id)
        return None if state is None else DescribeAppResponse(app_id, state=state)


def _id(handle: str) -> str:
    return handle.rpartition("/")[2]


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PipelineError(f"{command[0]}: {error}; expected to run where Slurm's commands work") from error
    if done.returncode:
        raise PipelineError(f"{command[0]}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout


SCHEDULER = Slurm()
