"""The result type of all soak tests, and a counter of their rounds on stderr."""

import faulthandler
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

EVERY_SECONDS = 10.0


class Found(NamedTuple):
    reached: str
    wrong: list[str]


def rounds(count: int, what: str, hang_seconds: float = 120.0) -> Iterator[int]:
    """0 to count - 1; a round that takes longer than `hang_seconds` ends the process with its stacks."""
    told = time.monotonic()
    for number in range(count):
        faulthandler.dump_traceback_later(hang_seconds, exit=True, file=sys.stderr)
        yield number
        if time.monotonic() - told > EVERY_SECONDS:
            told = time.monotonic()
            tell(f"{what}: {number + 1} of {count}")
    faulthandler.cancel_dump_traceback_later()


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
