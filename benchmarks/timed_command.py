"""The cost of a whole command: wall and CPU seconds, and memory, of its process and of all that it starts."""

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from deit_fast.runtime.errors import RunError, one_line

_SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class Cost:
    """The cost of a command. seconds: wall time. cpu_seconds: user and system.

    peak_pss_mb: peak of the memory of all its processes together, in MB (2**20), in samples `every` seconds apart;
    shared pages count once.
    """

    seconds: float
    cpu_seconds: float
    peak_pss_mb: float


def time_command(command: Sequence[str], log: Path, every: float = _SAMPLE_SECONDS) -> Cost:
    """Runs the command to its end, with stdout and stderr in `log`. Raises RunError where its status is not 0.

    every: seconds between two samples of its memory.
    """
    peak = _Peak(every)
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            watcher = threading.Thread(target=peak.watch, args=(process.pid,), daemon=True)
            watcher.start()
            _, status, used = os.wait4(process.pid, 0)  # includes the time of children that it waited for
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.terminate()
                process.wait()
            peak.ended.set()
    watcher.join()
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RunError(f"{' '.join(command[:4])} ...: status {process.returncode}: {one_line(' '.join(lines[-1:]))}")
    return Cost(time.perf_counter() - start, used.ru_utime + used.ru_stime, peak.bytes / 2**20)


class _Peak:
    """The largest sum of the proportional set sizes (PSS) of a process and its descendants."""

    def __init__(self, every: float) -> None:
        self.bytes, self._every = 0, every
        self.ended = threading.Event()

    def watch(self, process: int) -> None:
        while True:
            self.bytes = max(self.bytes, _pss(process))
            if self.ended.wait(self._every):
                return


def _pss(process: int) -> int:
    total = 0
    try:
        root = psutil.Process(process)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0
    for each in family:
        try:
            total += each.memory_full_info().pss
        except psutil.Error:  # the process has just ended
            continue
    return total
