"""How far something is that takes more than a few seconds: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
LINE_SECONDS = 10.0


def progress(items: Iterable[Item], total: int, what: str, show: bool = True) -> Iterator[Item]:
    """The items, with progress on stderr; `show` is for the one process of several that reports."""
    if show and sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, leave=False, dynamic_ncols=True)
        return
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if show and time.monotonic() - last > LINE_SECONDS:
            last = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)
