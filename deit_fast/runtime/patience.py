"""Retries for storage that fails for a while: operations are repeated after growing pauses, for about a minute in all.

A mount that returns, a server that restarts, a store that answers 503, a process with all its files open: each of these
passes in seconds, and none says anything about the data. A longer failure ends the process with StorageError.
"""

import random
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

from deit_fast.runtime.errors import StorageError, one_line, printable
from deit_fast.runtime.exit_status import ExitStatus, status_of

PATIENCE_SECONDS = 60.0
_PAUSES = 7  # each twice as long as the one before: 0.5, 1, 2, 4, 8, 15 and 30 seconds of a minute
_SAID_FROM = 2  # the first pauses are too short to be worth a line

Result = TypeVar("Result")
Pause = Callable[[float], object]
"""Waits this many seconds; returns true if the wait was interrupted in order to give up at once."""

_last_said = [-PATIENCE_SECONDS]
_outer: ContextVar[tuple[float, Pause] | None] = ContextVar("_outer", default=None)  # arguments of the enclosing call


class BusyError(ConnectionError):
    """A failure of a store over a network that may pass.

    wait: seconds that the store asked to wait.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class UnreachableError(BusyError):
    """No connection was made: there is no network, or no server at the address."""


def patience(hang_timeout: float) -> float:
    """Seconds for which a read may be retried before the watchdog, at `hang_timeout` seconds, ends the process."""
    return min(PATIENCE_SECONDS, hang_timeout / 2)


def may_pass(error: BaseException) -> bool:
    """Whether the machine failed, so that the same call may succeed later.

    False for errors of a wrong path or a missing right, and for an OSError without a number, by which libraries report
    wrong content.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return status_of(error) is ExitStatus.STORAGE_FAILED
    return isinstance(error, MemoryError | TimeoutError | ConnectionError)


def patiently(
    action: Callable[[], Result],
    name: str | Callable[[], str],
    seconds: float | None = None,
    pause: Pause | None = None,
    doing: str = "read",
) -> Result:
    """The action's result. If the storage fails, the action is called again, so it must be repeatable.

    name: what is read, for messages, or a function that returns it. seconds: from the first failure to the last
    attempt; if one attempt takes longer, there is still another. pause: the function that waits. Where these two are
    not given, they are those of the enclosing call of `patiently`, else PATIENCE_SECONDS and time.sleep. doing: the
    action in messages, as a participle. Raises StorageError, one line, where the failure lasts; any error for which
    `may_pass` is False is raised as it is.
    """
    outer = _outer.get() or (PATIENCE_SECONDS, time.sleep)
    seconds = outer[0] if seconds is None else seconds
    pause = pause or outer[1]
    failed_at: float | None = None
    entered = _outer.set((seconds, pause))
    try:
        for number in range(_PAUSES + 1):
            try:
                return action()
            except (OSError, MemoryError) as error:
                if not may_pass(error):
                    raise
                reason, now = _describe(error), time.monotonic()
                name = name if isinstance(name, str) else name()
                failed_at = now if failed_at is None else failed_at
                left = failed_at + seconds - now
                exhausted = number == _PAUSES or left <= 0
                if not exhausted:
                    _say_rarely(number, f"{printable(name)}: {reason}; trying again for {left:.0f} s")
                if exhausted or pause(min(left, _wait_after(error, seconds * 2**number / (2**_PAUSES - 1)))):
                    tries = f"{number + 1} times in {now - failed_at:.0f} s"
                    raise StorageError(
                        f"{printable(name)}: cannot be {doing} ({reason}), tried {tries}; run again when the storage "
                        "answers"
                    ) from error
    finally:
        _outer.reset(entered)
    raise AssertionError


def _wait_after(error: BaseException, wait: float) -> float:
    """Seconds until the next attempt; random for a store, so that its many readers do not all return at once."""
    return max(error.wait, wait * random.uniform(0.5, 1.5)) if isinstance(error, BusyError) else wait


def _describe(error: OSError | MemoryError) -> str:
    if isinstance(error, OSError):
        return error.strerror or one_line(error) or type(error).__name__
    return "out of memory"


def _say_rarely(number: int, line: str) -> None:
    """Prints a line on stderr, at most one a minute, because an outage affects every reader of every process."""
    now = time.monotonic()
    if number >= _SAID_FROM and now - _last_said[0] >= PATIENCE_SECONDS:
        _last_said[0] = now
        tqdm.write(f"deit-fast: {line}", file=sys.stderr)
