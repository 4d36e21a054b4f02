"""The errors a user can meet. Each message is one line: the key or file, its value, what was expected.

A RecipeError has a line for each mistake. `status` is what a command that ends with the error exits with.
"""

import difflib
import errno
import resource
from collections.abc import Iterable

from deit_fast.runtime.exit_status import ExitStatus

_NO_MEMORY = ("failed to map segment", "cannot allocate memory", "can't allocate memory", "not enough memory",
              "can't start new thread", "bad_alloc")  # fmt: skip


# torch's CPU allocator, cuBLAS and cuDNN, NCCL, DALI and the driver.
_FULL = ("defaultcpuallocator", "can't allocate memory", "alloc_failed", "out of memory", "bad_alloc",
         "cudaerrormemoryallocation", "memory allocation failed", "could not allocate")  # fmt: skip


class RecipeError(ValueError):
    """A recipe that cannot be used: a line for each thing that is wrong with it."""

    status = ExitStatus.REFUSED


class DataError(ValueError):
    """Data that cannot be read."""

    status = ExitStatus.REFUSED


class BadDataError(DataError):
    """Too many images whose bytes cannot be used."""

    status = ExitStatus.BAD_DATA


class RunError(RuntimeError):
    """A machine, checkpoint or folder that cannot do what was asked."""

    status = ExitStatus.REFUSED


class DivergedError(RunError):
    """A run whose loss is no finite number any more."""

    status = ExitStatus.DIVERGED


class LacksMemoryError(RunError):
    """Too little memory, of a GPU or of the machine, for what is held at once."""

    status = ExitStatus.OUT_OF_MEMORY


class StorageError(RunError):
    """A disk, a mount or an object store that failed and went on failing; started again, the run goes on."""

    status = ExitStatus.STORAGE_FAILED


class StoppedError(RuntimeError):
    """A run that stopped on a signal with work left; started again, it goes on."""

    status = ExitStatus.STOPPED


def suggest(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'lr'?)`, or nothing where no choice is close."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def too_little_memory(error: BaseException) -> str:
    """The line about an error that a limit on this process's memory (ulimit -v) made; nothing about any other error."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return ""
    known = isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)
    return f"ulimit -v {limit // 1024}: expected more memory, or unlimited ({one_line(error)[:200]})" if known else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU or the machine had no memory left: torch's, its libraries', DALI's or Python's.

    torch's class is known by its name: this module does without torch.
    """
    if isinstance(error, RunError | ValueError):  # of ours, which say more, or a mistake
        return isinstance(error, LacksMemoryError)
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _FULL)


def one_line(text: object) -> str:
    """The text with its white space, line breaks among it, as single spaces."""
    return " ".join(str(text).split())


def printable(name: str) -> str:
    """A file's name as one line of text: control characters, and bytes that are not UTF-8, as backslash escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def brief(text: str, limit: int = 200) -> str:
    """The first `limit` characters of a user's text, as part of one line; unprintable ones as backslash escapes."""
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text[:limit])
    return shown if len(text) <= limit else f"{shown}..."
