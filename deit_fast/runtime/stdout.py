"""Standard output to a pipe that may close, as in `deit-fast show NAME | head`: later output is then discarded."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def outlive_reader() -> Iterator[None]:
    """From the first line that a closed pipe refuses, standard output becomes the null device, without an error."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's last flush would print an error


def print_any_name() -> None:
    """From now on names of files that are no UTF-8 are printed with backslash escapes; Python would raise an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def tell(*lines: object) -> None:
    """Prints lines to stdout at once."""
    with outlive_reader():
        print(*lines, sep="\n", flush=True)
