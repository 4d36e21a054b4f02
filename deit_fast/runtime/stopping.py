"""Stopping on a signal: before a scheduler ends the job, or after Ctrl-C, a run writes a checkpoint and ends."""

import os
import select
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from deit_fast.runtime.exit_status import ExitStatus, report_status

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # preemption; Slurm's --signal=USR1@SECONDS; Ctrl-C
NOTICE_SECONDS = 2.0  # after this time, a person who pressed Ctrl-C is told what the run is waiting for
STDERR = 2


class StopSignal:
    """While entered in the main thread, signals only set `received`, because each process gets them at another moment.

    The first SIGINT also sets `interrupted`. Until `saves` is set there is nothing to save, and SIGINT raises
    KeyboardInterrupt instead. A second Ctrl-C ends the process at once with ExitStatus.INTERRUPTED. A thread does this,
    since the main thread may be waiting in a collective or a read.
    """

    def __init__(self) -> None:
        self.received = False
        self.interrupted = False
        self.saves = False
        """Whether the run has done a step that a checkpoint would keep."""
        self._before: dict[signal.Signals, Any] = {}
        self._fd_before = -1
        self._pipe: tuple[int, int] | None = None
        self._thread = threading.Thread(target=self._watch, name="deit-fast-stopping", daemon=True)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # signal handlers are for the main thread only
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._thread.start()
            self._fd_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pipe is not None:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._fd_before)
            os.close(self._pipe[1])  # ends the reading thread
            self._thread.join()
            os.close(self._pipe[0])

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if number == signal.SIGINT and not self.interrupted:
            self.interrupted = True
            if not self.saves:
                raise KeyboardInterrupt

    def _watch(self) -> None:
        """Reads the signals' numbers, which Python writes to the pipe as they arrive, before it calls a handler."""
        assert self._pipe is not None
        seen: list[int] = []
        told = False
        while True:
            waits = None if told or signal.SIGINT not in seen else NOTICE_SECONDS
            if not select.select([self._pipe[0]], [], [], waits)[0]:
                told = True
                _tell("Ctrl-C: the run ends with a checkpoint, as soon as a step is done; once more ends it at once")
                continue
            if not (read := os.read(self._pipe[0], 1)):
                return
            seen.append(read[0])
            if is_second_interrupt(seen, "TORCHELASTIC_RUN_ID" in os.environ):
                _tell("ended at once, without another checkpoint; run the same command again to go on from the last")
                report_status(ExitStatus.INTERRUPTED)
                os._exit(ExitStatus.INTERRUPTED)


def is_second_interrupt(seen: list[int], under_torchrun: bool) -> bool:
    """Whether the signals received so far mean that Ctrl-C was pressed twice.

    A terminal sends SIGINT to all processes. torchrun receives it too and sends its workers another SIGINT for the
    first Ctrl-C, and SIGTERM for the second. Equal signals that are pending together arrive as one.
    """
    interrupts = seen.count(signal.SIGINT)
    if not under_torchrun:
        return interrupts > 1
    return interrupts > 2 or (interrupts > 0 and signal.SIGTERM in seen[seen.index(signal.SIGINT) :])


def _tell(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        os.write(STDERR, f"deit-fast: {line}\n".encode())
