"""Standard output whose reader may leave, as in `deit-fast show NAME | head`: what is printed then goes nowhere."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def outlive_reader() -> Iterator[None]:
    """From the first line that a closed pipe refuses on, standard output is the null device: no error, no message."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush complains


def tell(*lines: object) -> None:
    """Prints lines to stdout at once."""
    with outlive_reader():
        print(*lines, sep="\n", flush=True)
