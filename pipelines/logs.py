"""Logs of stages: live while jobs run, and the last lines of failed jobs."""

import contextlib
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TextIO

from torchx.runner import Runner
from torchx.schedulers.api import Stream
from torchx.schedulers.local_scheduler import SignalException

from .schedulers import find_scheduler
from .state import Record, explain

TAIL_LINES = 20
_TORCHRUN_REPORT = re.compile(r"torch/distributed/elastic/.*\] (failed \(exitcode|Sending process)")


def follow_log(
    runner: Runner, stage: str, record: Record, stream: TextIO, ended: Callable[[], bool]
) -> list[threading.Thread]:
    """Copies the first node's log to `stream`, line by line and with the stage's name, until the job has `ended`.

    A stream whose reader is gone gets no more lines; the stage continues.
    """
    scheduler = find_scheduler(record.handle)

    def lines(source: Stream | None) -> Iterator[str]:
        try:
            yield from scheduler.follow(runner, record.handle, record.role, source, ended)
        except Exception as error:  # a scheduler without logs is no reason to stop
            yield f"no log: {explain(error)}"

    def copy(source: Stream | None) -> None:
        with contextlib.suppress(OSError, ValueError):  # the reader of the stream is gone, or the stream is closed
            for line in lines(source):
                stream.write(f"{stage} | {line}\n")
                stream.flush()

    threads = [threading.Thread(target=copy, args=(source,), daemon=True) for source in scheduler.streams]
    for thread in threads:
        thread.start()
    return threads


def log_tail(runner: Runner, record: Record) -> list[str]:
    """The last lines of every node's log, without torchrun's own report of a failed worker.

    After that report, only lines of deit_fast itself are kept, which say how the run ended.
    """
    scheduler = find_scheduler(record.handle)
    tail: list[str] = []
    for replica in range(record.replicas):
        try:
            lines = list(deque(scheduler.log(runner, record.handle, record.role, replica), maxlen=400))
        except SignalException:
            raise
        except Exception as error:
            lines = [f"no log of node {replica}: {explain(error)}"]
        report = next((i for i, line in enumerate(lines) if _TORCHRUN_REPORT.search(line)), len(lines))
        told = lines[:report] + [line for line in lines[report:] if line.startswith("deit-fast: ")]
        tail += told[-max(TAIL_LINES // record.replicas, 5) :]
    return tail
