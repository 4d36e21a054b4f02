"""Progress of work that takes more than a few seconds: a bar on a terminal, an occasional line elsewhere.

The bar is tqdm's, which draws in the thread that counts and leaves stdout alone. rich would add a drawing thread to
every process and intercept its output, for one line that needs no layout.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

from tqdm import tqdm

from deit_fast.runtime.stdout import outlive_reader

Item = TypeVar("Item")
LINE_SECONDS = 10.0


def say(line: str) -> None:
    """Prints a line to stdout at once, above a terminal's bars. A closed pipe does not end the run."""
    with outlive_reader():
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


class Progress:
    """The progress of `total` items named `what`, of which `start` are done; a context manager.

    A log file gets "WHAT: 3 of 9" on stderr every LINE_SECONDS. unit: an item's name in the rate; "B" means bytes,
    shown as MiB and so on. show: False for all processes but the one that reports.
    """

    def __init__(self, total: int, what: str, start: int = 0, unit: str = "it", show: bool = True) -> None:
        self._what, self._total, self._done = what, total, start
        self._bytes = unit == "B"
        drawn = show and sys.stderr.isatty()
        self._bar = (
            tqdm(desc=what, total=total, initial=start, unit=unit, leave=False, dynamic_ncols=True,
                 unit_scale=self._bytes, unit_divisor=1024)
            if drawn else None
        )  # fmt: skip
        self._lines = show and not drawn
        self._last_line = time.monotonic()

    def update(self, count: int = 1) -> None:
        """Counts `count` more items."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._lines and time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            counts = f"{self._done} of {self._total}"
            if self._bytes:
                counts = f"{self._done >> 20} of {self._total >> 20} MiB"
            print(f"{self._what}: {counts}", file=sys.stderr, flush=True)

    def write(self, line: str) -> None:
        """Prints a line to stdout, above the bar if there is one."""
        say(line)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def progress(items: Iterable[Item], total: int, what: str, show: bool = True) -> Iterator[Item]:
    """The items, each counted by a Progress after its use."""
    with Progress(total, what, show=show) as bar:
        for item in items:
            yield item
            bar.update()
