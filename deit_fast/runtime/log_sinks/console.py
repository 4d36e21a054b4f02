"""A line for each record, on stdout, beside a progress bar where there is one."""

import sys
from collections.abc import Mapping

from tqdm import tqdm

from deit_fast.runtime.log_sinks import LogSink, Sink


def say(line: str) -> None:
    """Prints a line at once, above the bars that a terminal shows."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class Console(Sink):
    """A line for each record on stdout."""

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        say(f"step {step}  " + "  ".join(f"{key} {value:.4g}" for key, value in values.items()))


LOG_SINK = LogSink(lambda folder, step: Console(), always=True)
