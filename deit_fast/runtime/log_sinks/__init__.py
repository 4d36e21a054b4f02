"""Log sinks, which receive a run's figures. Each module has a LOG_SINK, and adding a module adds a sink.

Some sinks are always on. Others are on if the recipe's run.trackers or the environment variable DEIT_FAST_LOG_SINKS
lists their modules' names; the variable separates names by commas.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from deit_fast.runtime.discover import discover
from deit_fast.runtime.errors import RunError, suggest

VARIABLE = "DEIT_FAST_LOG_SINKS"


class Sink:
    """One receiver of a run's figures, in the run's main process. A subclass overrides the methods that it needs.

    A full disk must not end a run of days: an OSError in `record` is reported in a line, and the run continues.
    """

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Receives the figures of one kind, "train" or "eval", after `step` steps; nan for a missing figure."""

    def image(self, name: str, grid: Tensor, step: int) -> None:
        """Receives a picture, uint8 [3, H, W]."""

    def close(self) -> None:
        """Called last, also when the run failed."""


@dataclass(frozen=True)
class LogSink:
    """How a sink is opened: open(folder, step) for the run in `folder` whose state is that after `step` steps.

    Records of an earlier process for steps beyond `step` have to be removed, because these steps are trained and logged
    again.
    """

    open: Callable[[Path, int], Sink]
    always: bool = False
    """Whether the sink is always on."""


def chosen_sinks(trackers: Sequence[str] = ("tensorboard",)) -> dict[str, LogSink]:
    """The sinks that are on, by name, including those of run.trackers. Raises RunError for an unknown name."""
    known = discover(__name__, "LOG_SINK", LogSink)
    variable = [name for name in os.environ.get(VARIABLE, "").split(",") if name]
    for names, place in ((trackers, "run.trackers"), (variable, VARIABLE)):
        for name in names:
            if name not in known:
                raise RunError(f"{place}={name!r}: expected names of {', '.join(known)}{suggest(name, known)}")
    return {name: sink for name, sink in known.items() if sink.always or name in (*trackers, *variable)}
