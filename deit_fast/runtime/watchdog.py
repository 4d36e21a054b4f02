"""Ends a process that hangs: in a read, in a collective, in the driver, wherever no error is ever raised."""

import faulthandler
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from deit_fast.runtime.exit_status import ExitStatus, report_status

START_SECONDS = 1800.0  # a first step and a first evaluation may compile, without a sign of life
STDERR = 2  # the file descriptor: sys.stderr has none in a notebook and in a test


class Watchdog:
    """While entered, ends the process if `beat` is not called for `timeout` seconds.

    It prints a line to stderr, writes the stacks of all threads to folder/hang-rank.txt and exits with ExitStatus.HUNG
    without any clean-up, which would hang as well. Checkpoints are whole at any time.
    """

    def __init__(self, folder: Path, rank: int, timeout: float) -> None:
        self._path, self._rank, self._timeout = folder / f"hang-{rank}.txt", rank, timeout
        self._beat = (time.monotonic(), "the start", START_SECONDS)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="deit-fast-watchdog", daemon=True)

    def beat(self, now_at: str, allowance: float = 0.0) -> None:
        """A sign of life. The next work, named `now_at`, may take the timeout plus `allowance` seconds from now on."""
        self._beat = (time.monotonic(), now_at, allowance)

    def __enter__(self) -> Self:
        self.beat(self._beat[1], START_SECONDS)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        interval = min(self._timeout / 10, 5.0)
        while not self._ended.wait(interval):
            since, now_at, allowance = self._beat
            limit = self._timeout + allowance
            waited = time.monotonic() - since
            if waited > limit:
                self._end(now_at, waited)
            # If the interpreter's lock is never released, this thread hangs as well. A thread of faulthandler, which
            # needs no lock, then ends the process.
            faulthandler.dump_traceback_later(limit - waited + 2 * interval, exit=True, file=STDERR)

    def _end(self, now_at: str, waited: float) -> None:
        try:
            with open(self._path, "w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            where = f"the stacks are in {self._path}"
        except OSError as error:
            where = f"the stacks cannot be written ({error.strerror})"
        line = f"rank {self._rank}: no sign of life for {waited:.0f} s at {now_at} (run.hang_timeout={self._timeout:g})"
        os.write(STDERR, f"deit-fast: {line}; {where}\n".encode())
        report_status(ExitStatus.HUNG)
        os._exit(ExitStatus.HUNG)
