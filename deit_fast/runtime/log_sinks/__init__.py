"""Where a run's figures go: each module has a LOG_SINK, and a new module is a new place.

Some sinks are always on. The others are, where the recipe's run.trackers or DEIT_FAST_LOG_SINKS lists their modules'
names; the variable has commas between.
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
    """One place for the figures of one run, in its main process. A sink defines what it has a use for.

    A full disk must not end a run of days: an OSError of `record` is told in a line, and the run goes on.
    """

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Takes the figures of one kind, "train" or "eval", after `step` steps; nan where there is none."""

    def image(self, name: str, grid: Tensor, step: int) -> None:
        """Takes a picture, uint8 [3, H, W]."""

    def close(self) -> None:
        """Is the last call, also of a run that failed."""


@dataclass(frozen=True)
class LogSink:
    """How a sink is opened: open(folder, step) for the run in `folder`, whose state is that after `step` steps.

    What an earlier process left behind beyond `step` has to go: those steps are trained, and logged, again.
    """

    open: Callable[[Path, int], Sink]
    always: bool = False
    """Whether the sink is on without being asked for."""


def chosen_sinks(trackers: Sequence[str] = ("tensorboard",)) -> dict[str, LogSink]:
    """The sinks that are on, by their names: run.trackers' too. Raises RunError for a name that no module has."""
    known = discover(__name__, "LOG_SINK", LogSink)
    variable = [name for name in os.environ.get(VARIABLE, "").split(",") if name]
    for names, place in ((trackers, "run.trackers"), (variable, VARIABLE)):
        for name in names:
            if name not in known:
                raise RunError(f"{place}={name!r}: expected names of {', '.join(known)}{suggest(name, known)}")
    return {name: sink for name, sink in known.items() if sink.always or name in (*trackers, *variable)}
