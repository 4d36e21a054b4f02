"""The exit statuses of every command, and what a scheduler is to make of each: the one table of the product.

Numbers of 64 and more are those of sysexits.h. A traceback, which is a mistake of ours, ends with Python's 1.
"""

import contextlib
import errno
import os
from enum import IntEnum

STATUS_BOARD = "DEIT_FAST_STATUS_BOARD"
"""The environment variable with the file in which the workers of deit_fast.runtime.torchrun note how they ended."""


class ExitStatus(IntEnum):
    """How a command ended. `final` says that the same command, started again, would end so too."""

    DONE = 0
    INCOMPLETE = 1
    """Some images could not be used, and the others are done."""
    REFUSED = 2
    """A mistake that the user has to mend: a recipe, a path, a checkpoint, other data than the run began with."""
    DIVERGED = 3
    """The loss was no finite number for run.nonfinite_limit steps; it would be so again."""
    BAD_DATA = 65
    """EX_DATAERR: too many images whose bytes cannot be used."""
    HUNG = 70
    """EX_SOFTWARE: no sign of life for run.hang_timeout seconds, or nodes that did not meet."""
    OUT_OF_MEMORY = 71
    """EX_OSERR: a GPU or the machine had too little memory for what the command held at once; it would end so again."""
    STORAGE_FAILED = 74
    """EX_IOERR: a disk, a mount or an object store failed, and went on failing."""
    STOPPED = 75
    """EX_TEMPFAIL: stopped by a signal, with a checkpoint of all that was done."""
    INTERRUPTED = 130
    """128 + SIGINT: a person's Ctrl-C, whose work is in a checkpoint where there was time to write one."""

    @property
    def final(self) -> bool:
        """Whether a scheduler must not start the command again: it would end the same way.

        1 is not final. It is the status of a traceback too, which the end of another process may have caused.
        """
        return self in _FINAL


_FINAL = {ExitStatus.REFUSED, ExitStatus.DIVERGED, ExitStatus.BAD_DATA, ExitStatus.OUT_OF_MEMORY,
          ExitStatus.INTERRUPTED}  # fmt: skip

# What a wrong path or a missing right gives, and a socket in a file's place. No space, a stale handle, a time-out and
# all else are the machine's.
_MISTAKES = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.ESPIPE, errno.ENOTEMPTY, errno.EXDEV, errno.ENXIO,
}  # fmt: skip


def status_of(error: OSError) -> ExitStatus:
    """REFUSED for an error that a path or a right of the user's makes, STORAGE_FAILED for any other of the system's."""
    return ExitStatus.REFUSED if error.errno in _MISTAKES else ExitStatus.STORAGE_FAILED


def report_status(status: int) -> None:
    """Notes, for the launcher that started this process, that it is about to end with a status other than 0.

    torchrun tells nobody the status of a worker. Without a launcher that asks for it, nothing is noted.
    """
    board = os.environ.get(STATUS_BOARD)
    if board and status:
        # Without the note, the launcher knows what torchrun saw.
        with contextlib.suppress(OSError), open(board, "a", encoding="ascii") as file:
            file.write(f"{os.environ.get('RANK', '0')} {int(status)}\n")
