"""Processes of this machine. A killed driver leaves them running, unknown to the scheduler of the next one."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterable

import psutil
from torchx.runner import Runner
from torchx.schedulers.api import Stream
from torchx.specs import AppState

from . import Scheduler


class Local(Scheduler):
    local = True
    missing = None
    streams = (Stream.STDOUT, Stream.STDERR)  # the combined one may lack the last lines when two threads see a job end

    def state(self, runner: Runner, handle: str) -> AppState | None:
        state = super().state(runner, handle)
        orphaned = state in (None, AppState.UNKNOWN) and find_processes(handle)
        return AppState.RUNNING if orphaned else state

    def follow(
        self, runner: Runner, handle: str, role: str, stream: Stream | None, ended: Callable[[], bool]
    ) -> Iterable[str]:
        known = runner.status(handle) is not None
        return super().follow(runner, handle, role, stream, ended) if known else ()

    def cancel(self, runner: Runner, handle: str) -> None:
        """Ends a job, which TorchX gives ten seconds to do so, or another driver's."""
        super().cancel(runner, handle)
        for pid in find_processes(handle):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def find_processes(handle: str) -> list[int]:
    """Processes of this machine that belong to a TorchX job, by the handle TorchX puts in their environment."""
    # Of another user's the environment is None.
    each = psutil.process_iter(["environ"])
    return [process.pid for process in each if (process.info["environ"] or {}).get("TORCHX_JOB_ID") == handle]


SCHEDULER = Local()
