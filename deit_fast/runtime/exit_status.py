"""The exit statuses of every command, and what a scheduler is to make of each: the one table of the product.

Numbers of 64 and more are those of sysexits.h. A traceback, which is a mistake of ours, ends with Python's 1.
"""

import errno
from enum import IntEnum


class ExitStatus(IntEnum):
    """How a command ended. `retriable` says whether the same command, started again, may end better."""

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
    """EX_SOFTWARE: no sign of life for run.hang_timeout seconds."""
    STORAGE_FAILED = 74
    """EX_IOERR: a disk, a mount or an object store failed, and went on failing."""
    STOPPED = 75
    """EX_TEMPFAIL: stopped by a signal, with a checkpoint of all that was done."""
    INTERRUPTED = 130
    """128 + SIGINT: a person's Ctrl-C, whose work is in a checkpoint where there was time to write one."""

    @property
    def retriable(self) -> bool:
        """Whether a scheduler should start the command again: what stopped it lies outside of what it was given."""
        return self in _RETRIABLE


_RETRIABLE = {ExitStatus.HUNG, ExitStatus.STORAGE_FAILED, ExitStatus.STOPPED}

# What a wrong path or a missing right gives, and a socket in a file's place. No space, a stale handle, a time-out and
# all else are the machine's.
_MISTAKES = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.ENOTEMPTY, errno.EXDEV, errno.ENXIO,
}  # fmt: skip


def status_of(error: OSError) -> ExitStatus:
    """REFUSED for an error that a path or a right of the user's makes, STORAGE_FAILED for any other of the system's."""
    return ExitStatus.REFUSED if error.errno in _MISTAKES else ExitStatus.STORAGE_FAILED
