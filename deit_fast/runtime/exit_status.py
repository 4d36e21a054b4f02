"""The exit statuses of all commands, and whether a scheduler should start a command again: the only such table.

Numbers from 64 on are those of sysexits.h. A traceback, which is a bug in this package, ends with Python's status 1.
"""

import contextlib
import errno
import os
from enum import IntEnum

STATUS_BOARD = "DEIT_FAST_STATUS_BOARD"
"""The environment variable that names the file in which workers of deit_fast.runtime.torchrun note their status."""


class ExitStatus(IntEnum):
    """How a command ended. `final` says that the same command would end the same way if it were started again."""

    DONE = 0
    INCOMPLETE = 1
    """Some images could not be used; all others are done."""
    REFUSED = 2
    """A mistake that the user has to correct: a recipe, a path, a checkpoint, or data other than the run began with."""
    DIVERGED = 3
    """The loss was not finite for run.nonfinite_limit steps; it would not be finite again."""
    BAD_DATA = 65
    """EX_DATAERR: too many images whose bytes cannot be used."""
    HUNG = 70
    """EX_SOFTWARE: no step or batch for run.hang_timeout seconds, or nodes that did not meet."""
    OUT_OF_MEMORY = 71
    """EX_OSERR: too little memory of a GPU or of the machine; the command would run out of memory again."""
    STORAGE_FAILED = 74
    """EX_IOERR: a disk, a mount or an object store failed for longer than was waited."""
    STOPPED = 75
    """EX_TEMPFAIL: stopped by a signal; a checkpoint holds all work done."""
    INTERRUPTED = 130
    """128 + SIGINT: Ctrl-C; a checkpoint holds the work, if there was time to write one."""

    @property
    def final(self) -> bool:
        """Whether a scheduler must not start the command again, because it would end the same way.

        Status 1 is not final: a traceback ends with 1 too, and the end of another process may have caused that
        traceback.
        """
        return self in _FINAL


_FINAL = {ExitStatus.REFUSED, ExitStatus.DIVERGED, ExitStatus.BAD_DATA, ExitStatus.OUT_OF_MEMORY,
          ExitStatus.INTERRUPTED}  # fmt: skip

# Errors of a wrong path, a missing right, or a socket in a file's place. Others (no space, a stale handle, a time-out)
# are the machine's.
_MISTAKES = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.ESPIPE, errno.ENOTEMPTY, errno.EXDEV, errno.ENXIO,
}  # fmt: skip


def status_of(error: OSError) -> ExitStatus:
    """REFUSED for errors of a wrong path or a missing right, STORAGE_FAILED for all other errors of the system."""
    return ExitStatus.REFUSED if error.errno in _MISTAKES else ExitStatus.STORAGE_FAILED


def report_status(status: int) -> None:
    """Notes for the launcher that started this process that it is about to end with a status other than 0.

    torchrun does not pass on the status of a worker. Without a launcher that asks for the note, nothing is written.
    """
    board = os.environ.get(STATUS_BOARD)
    if board and status:
        # Without the note, the launcher uses the status that torchrun saw.
        with contextlib.suppress(OSError), open(board, "a", encoding="ascii") as file:
            file.write(f"{os.environ.get('RANK', '0')} {int(status)}\n")
