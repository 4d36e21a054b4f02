"""Processes of this machine. If a driver is killed they keep running, unknown to the next driver's scheduler."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence

import psutil
from torchx.runner import Runner
from torchx.schedulers.api import Stream
from torchx.schedulers.local_scheduler import SignalException
from torchx.specs import AppState

from ..state import remembering
from . import Scheduler

STOP_SECONDS = 120.0  # torchrun's time for the last checkpoint, and some more


class Local(Scheduler):
    local = True
    missing = None
    streams = (Stream.STDOUT, Stream.STDERR)  # the combined one may lack the last lines if two threads see a job end

    def state(self, runner: Runner, handle: str) -> AppState | None:
        state = super().state(runner, handle)
        orphaned = state in (None, AppState.UNKNOWN) and find_processes(handle)
        return AppState.RUNNING if orphaned else state

    def follow(
        self, runner: Runner, handle: str, role: str, stream: Stream | None, ended: Callable[[], bool]
    ) -> Iterable[str]:
        known = runner.status(handle) is not None
        return super().follow(runner, handle, role, stream, ended) if known else ()

    def stop(self, handles: Sequence[str]) -> None:
        """Lets all jobs end with a checkpoint; an interrupt meanwhile kills them."""
        with remembering() as signals, contextlib.suppress(KeyboardInterrupt, SignalException):
            if handles:
                print("interrupted: what runs ends with a checkpoint; once more ends it at once, without", flush=True)
            _send(handles, signal.SIGTERM)
            end = time.monotonic() + STOP_SECONDS
            while time.monotonic() < end and any(map(find_processes, handles)) and not signals:
                time.sleep(0.1)
        if signals:
            _send(handles, signal.SIGKILL)

    def cancel(self, runner: Runner, handle: str) -> None:
        """Ends a job of this driver, to which TorchX gives ten seconds, or of another driver."""
        super().cancel(runner, handle)
        _send([handle], signal.SIGTERM)


def _send(handles: Sequence[str], number: signal.Signals) -> None:
    for pid in (pid for handle in handles for pid in find_processes(handle)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def find_processes(handle: str) -> list[int]:
    """Processes of this machine that belong to a TorchX job, by the handle in their environment."""
    # The environment of another user's process is None.
    each = psutil.process_iter(["environ"])
    return [process.pid for process in each if (process.info["environ"] or {}).get("TORCHX_JOB_ID") == handle]


SCHEDULER = Local()
