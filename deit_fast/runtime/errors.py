"""The errors that a user can meet. Each message is one line: the key or file, its value, and what was expected.

A RecipeError has one line for each mistake. `status` is the exit status of a command that ends with the error.
"""

import difflib
import errno
import resource
from collections.abc import Iterable

from deit_fast.runtime.exit_status import ExitStatus

_NO_MEMORY = ("failed to map segment", "cannot allocate memory", "can't allocate memory", "not enough memory",
              "can't start new thread", "bad_alloc")  # fmt: skip


# Phrases in messages of torch's CPU allocator, cuBLAS and cuDNN, NCCL, DALI and the driver.
_FULL = ("defaultcpuallocator", "can't allocate memory", "alloc_failed", "out of memory", "bad_alloc",
         "cudaerrormemoryallocation", "memory allocation failed", "could not allocate")  # fmt: skip


class RecipeError(ValueError):
    """A recipe that cannot be used; the message has a line for each mistake."""

    status = ExitStatus.REFUSED


class DataError(ValueError):
    """Data that cannot be read."""

    status = ExitStatus.REFUSED


class BadDataError(DataError):
    """Too many images whose bytes cannot be used."""

    status = ExitStatus.BAD_DATA


class RunError(RuntimeError):
    """A machine, checkpoint or folder that does not allow what was asked."""

    status = ExitStatus.REFUSED


class DivergedError(RunError):
    """A run whose loss is not finite any more."""

    status = ExitStatus.DIVERGED


class LacksMemoryError(RunError):
    """Too little memory of a GPU or of the machine for the data that are held at once."""

    status = ExitStatus.OUT_OF_MEMORY


class StorageError(RunError):
    """A disk, a mount or an object store that failed for longer than was waited. If started again, the run resumes."""

    status = ExitStatus.STORAGE_FAILED


class StoppedError(RuntimeError):
    """A run that stopped on a signal before its end. If started again, the run resumes."""

    status = ExitStatus.STOPPED


def suggest(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'lr'?)`, or "" where no choice is close."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def too_little_memory(error: BaseException) -> str:
    """The line about an error that comes from a limit on this process's memory (ulimit -v); "" for any other error."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return ""
    known = isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)
    return f"ulimit -v {limit // 1024}: expected more memory, or unlimited ({one_line(error)[:200]})" if known else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that a GPU or the machine ran out of memory: torch's, its libraries', DALI's or Python's.

    torch's class is recognised by its name, because this module does not import torch.
    """
    if isinstance(error, RunError | ValueError):  # this package's own errors, or a mistake in an argument
        return isinstance(error, LacksMemoryError)
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _FULL)


def one_line(text: object) -> str:
    """The text with line breaks and other white space replaced by single spaces."""
    return " ".join(str(text).split())


def printable(name: str) -> str:
    """A file's name as one line of text: control characters and invalid UTF-8 become backslash escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def check_utf8(path: object) -> None:
    """Raises RunError for a path that is no UTF-8, which safetensors and TensorBoard refuse only when they write."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise RunError(f"{path}: expected a path in UTF-8") from None


def brief(text: str, limit: int = 200) -> str:
    """The first `limit` characters of a user's text, for use within a line; unprintable ones become escapes."""
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text[:limit])
    return shown if len(text) <= limit else f"{shown}..."
