"""A line for each record, on stdout, beside a progress bar where there is one."""

from collections.abc import Mapping

from deit_fast.runtime.log_sinks import LogSink, Sink
from deit_fast.runtime.progress import say


class Console(Sink):
    """A line for each record on stdout."""

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        say(f"step {step}  " + "  ".join(f"{key} {value:.4g}" for key, value in values.items()))


LOG_SINK = LogSink(lambda folder, step: Console(), always=True)
