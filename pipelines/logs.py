"""Logs of TorchX jobs, from whichever scheduler has them: live while they run, their last lines when they fail."""

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TextIO

from torchx.runner import Runner
from torchx.schedulers.api import Stream
from torchx.schedulers.local_scheduler import SignalException

from . import slurm, volcano
from .state import Record, explain

TAIL_LINES = 20
FOLLOW_SECONDS = 5.0  # between two attempts at the log of a pod
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*Z) ?")
_TORCHRUN_REPORT = re.compile(r"torch/distributed/elastic/.*\] (failed \(exitcode|Sending process)")


def follow_log(
    runner: Runner, stage: str, record: Record, stream: TextIO, ended: Callable[[], bool]
) -> list[threading.Thread]:
    """Copies the first node's log to `stream`, line by line, until the job has `ended`.

    LocalScheduler's combined log may lack the last lines when two threads see a job end; its parts do not. Kubernetes
    has a log once the pod has started, ends it with the pod, and has the next from a job that restarts.
    """
    again = record.handle.startswith("kubernetes:")

    def copy(source: Stream | None) -> None:
        last = ""
        while True:
            seen, over = last, not again or ended()  # before it is read: there may be more
            try:
                for line in _read(runner, record, follow=True, source=source):
                    last, text = _split(line)
                    if not again or last > seen:
                        stream.write(f"{stage} | {text}\n")
            except Exception as error:  # a scheduler without logs is no reason to stop
                if not again:
                    stream.write(f"{stage} | no log: {explain(error)}\n")
            if over:
                return
            time.sleep(FOLLOW_SECONDS)

    local = record.handle.startswith("local")
    sources = (Stream.STDOUT, Stream.STDERR) if local else (None,)
    threads = [threading.Thread(target=copy, args=(source,), daemon=True) for source in sources]
    for thread in threads:
        thread.start()
    return threads


def log_tail(runner: Runner, record: Record) -> list[str]:
    """The last lines of every node's log, without torchrun's own report of a failed worker, which comes after them."""
    tail: list[str] = []
    for replica in range(record.replicas):
        try:
            lines = list(deque((_split(line)[1] for line in _read(runner, record, replica)), maxlen=400))
        except SignalException:
            raise
        except Exception as error:
            lines = [f"no log of node {replica}: {explain(error)}"]
        report = next((i for i, line in enumerate(lines) if _TORCHRUN_REPORT.search(line)), 0)
        tail += lines[: report or None][-max(TAIL_LINES // record.replicas, 5) :]
    return tail


def _read(
    runner: Runner, record: Record, replica: int = 0, follow: bool = False, source: Stream | None = None
) -> Iterable[object]:
    if record.handle.startswith("slurm:"):
        return slurm.read_log(record.handle, record.role, replica, follow)
    if record.handle.startswith("kubernetes:") and not follow:
        return volcano.read_log(record.handle, record.role, replica)
    return runner.log_lines(record.handle, record.role, replica, should_tail=follow, streams=source)


def _split(line: object) -> tuple[str, str]:
    """The time Kubernetes puts before a line, nothing elsewhere, and the line."""
    text = (line.decode(errors="replace") if isinstance(line, bytes) else str(line)).rstrip()
    stamp = _STAMP.match(text)
    return (stamp[1], text[stamp.end() :]) if stamp else ("", text)
