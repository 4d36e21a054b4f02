"""The metrics of a run: recorded to every log sink that is on, shown on the console, and plotted to curves.png."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from torch import Tensor
from torchvision.utils import make_grid

from deit_fast.runtime.console import Console
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.log_sinks import LogSink, Sink
from deit_fast.runtime.log_sinks.json_lines import read_metrics
from deit_fast.runtime.progress import say


class MetricsLog:
    """The metrics of one run folder, from `step` on; records beyond `step` that a crash left are dropped.

    sinks: the sinks that are on, by name, from `chosen_sinks`. console: shows the figures to a person. speaks: whether
    this is the run's main process; in other processes nothing is recorded or shown.
    """

    def __init__(
        self, folder: Path, step: int, sinks: Mapping[str, LogSink], console: Console | None = None, speaks: bool = True
    ) -> None:
        self._speaks = speaks
        self._sinks: dict[str, Sink] = {}
        self._console = console if speaks else None
        try:
            for name, sink in sinks.items() if speaks else ():
                self._sinks[name] = sink.open(folder, step)
        except RunError:  # of a tracker that refuses; others were told that the run goes on
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Records figures of one kind, "train" or "eval", after `step` steps.

        If the disk is full, a line says what is missing, and the run continues.
        """
        for name, sink in self._sinks.items():
            with told(f"step {step}", name):
                sink.record(kind, step, values)
        if self._console is not None:
            self._console.record(kind, step, values)

    def images(self, name: str, images: Tensor, step: int) -> None:
        """Gives every sink a picture of images, uint8 [B, 3, H, W], eight in a row."""
        if self._speaks:
            grid = make_grid(images, nrow=8)
            for each, sink in self._sinks.items():
                with told(name, each):
                    sink.image(name, grid, step)

    def say(self, *lines: str) -> None:
        """Prints lines on the console only."""
        if self._speaks:
            for line in lines:
                say(line)

    def advance(self) -> None:
        """Counts one step."""
        if self._console is not None:
            self._console.advance()

    def paused(self, evaluated: float | None = None) -> None:
        """The time since the last step was no step; `evaluated` seconds of it were an evaluation."""
        if self._console is not None:
            self._console.paused(evaluated)

    def close(self) -> None:
        """Closes every sink and the bar."""
        for sink in self._sinks.values():
            with contextlib.suppress(OSError):  # `record` has reported it already
                sink.close()
        if self._console is not None:
            self._console.close()


@contextlib.contextmanager
def told(what: str, place: str = "the run folder") -> Iterator[None]:
    """Prints a line in the place of an OSError, so that pictures for people end no run and hide no other error."""
    try:
        yield
    except OSError as error:
        say(f"{what}: not in {place} ({error.strerror})")


def plot_curves(folder: Path, title: str) -> Path:
    """Plots loss, learning rate, accuracy and throughput of metrics.jsonl over the steps, as curves.png."""
    from matplotlib.figure import Figure  # imported here: it takes half a second, at the end of a run only

    records = read_metrics(folder / "metrics.jsonl")
    panels = (
        ("loss", "train", ("loss",)),
        ("learning rate", "train", ("lr",)),
        ("accuracy, %", "eval", ("top1", "top5", "ema_top1")),
        ("images per second", "train", ("images_per_second",)),
    )
    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(title, parse_math=False)  # a recipe's name may have dollar signs
    for axes, (label, kind, keys) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for key in keys:
            points = [(r["step"], r[key]) for r in records if r["kind"] == kind and r.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=key, marker="o" if kind == "eval" else None)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        if label == "images per second":
            axes.set_ylim(bottom=0)
        if len(keys) > 1 and axes.lines:
            axes.legend()
    path = folder / "curves.png"
    figure.savefig(path, dpi=110)
    return path
