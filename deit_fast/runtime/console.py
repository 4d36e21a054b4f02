"""A run's output for a person: a live line on a terminal, short aligned lines in a log file, the best score marked."""

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import timedelta

from tqdm import tqdm

from deit_fast.runtime.fold import COLUMNS, fold
from deit_fast.runtime.progress import say

_STEPS = 100  # number of steps over which the pace is averaged
_WARM = 3  # first steps of a process, in which it compiles and fills its caches
_AVERAGE = "average's "
_INDENT = 10  # columns before the second line of scores, as in the texts at the start of a run
_BAR = 12  # smallest width of the bar, columns


class Pace:
    """Estimates the remaining time of a run from its last steps and its evaluations."""

    def __init__(self, total: int, evaluations_left: Callable[[int], int]) -> None:
        """total: steps of the run. evaluations_left: returns the number of evaluations after a step."""
        self._total, self._evaluations_left = total, evaluations_left
        self._durations: deque[float] = deque(maxlen=_STEPS)
        self._evaluations: list[float] = []
        self._last: float | None = None
        self._warm = 0

    def step(self, now: float) -> None:
        """Counts a step that ended at `now`, seconds of a monotonic clock."""
        if self._last is not None:
            self._warm += 1
            if self._warm == _WARM:
                self._durations.clear()
            self._durations.append(now - self._last)
        self._last = now

    def pause(self, now: float, evaluated: float | None = None) -> None:
        """The time since the last step was no step; `evaluated` seconds of it were an evaluation."""
        self._last = now
        if evaluated is not None:
            self._evaluations.append(evaluated)

    def left(self, step: int) -> float | None:
        """Seconds from `step` to the end, with evaluations once one has run; None before the second step."""
        if not self._durations:
            return None
        steps = (self._total - step) * sum(self._durations) / len(self._durations)
        each = sum(self._evaluations) / len(self._evaluations) if self._evaluations else 0.0
        return steps + each * self._evaluations_left(step)


class Console:
    """The output of one run's main process.

    total, epochs: optimizer steps and epochs of the run. step: the step from which it starts. best: best top-1 so far,
    %. top5: whether evaluations show top-5, which is always 100 % with five classes or fewer.
    """

    def __init__(
        self, total: int, epochs: float, step: int, pace: Pace, best: float | None = None, top5: bool = True
    ) -> None:
        self._total, self._epochs, self._step, self._pace, self._best = total, epochs, step, pace, best
        self._hidden = () if top5 else ("top5",)
        self._values: Mapping[str, float] = {}
        self._bar = None
        if sys.stderr.isatty():  # a log file gets lines only
            self._bar = tqdm(total=total, initial=step, bar_format="{bar} {desc}", leave=True, dynamic_ncols=True)

    def advance(self) -> None:
        """Counts one step."""
        self._step += 1
        self._pace.step(time.perf_counter())
        self._describe()
        if self._bar is not None:
            self._bar.update()

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Shows figures of one kind, "train" or "eval".

        On a terminal, those of training appear in the live line only.
        """
        if kind == "train":
            self._values = values
            if self._bar is None:
                say("  ".join([self._place(step), *train_words(values), *self._left(step)]))
            return
        top1, best = values.get("top1"), self._best
        better = top1 is not None and (best is None or top1 > best)
        self._best = top1 if better else best
        self._describe()
        mark = "" if top1 is None else "best" if better or top1 == best else f"best so far {best:.2f} %"
        shown = {key: value for key, value in values.items() if key not in self._hidden}
        say(_score_line(self._place(step), score_words(shown), mark))

    def paused(self, evaluated: float | None = None) -> None:
        """The time since the last step was no step; `evaluated` seconds of it were an evaluation."""
        self._pace.pause(time.perf_counter(), evaluated)

    def close(self) -> None:
        """Ends the live line."""
        if self._bar is not None:
            self._bar.close()

    def _describe(self) -> None:
        """Sets the bar's text, which appears when the bar is drawn next."""
        if self._bar is not None:
            self._bar.set_description_str(self._live_line(), refresh=False)

    def _place(self, step: int) -> str:
        epoch, width = self._epochs * step / self._total, len(f"{self._total:,}")
        return (
            f"epoch {epoch:>{len(f'{self._epochs:g}') + 3}.2f}/{self._epochs:g}  step {step:>{width},}/{self._total:,}"
        )

    def _left(self, step: int) -> list[str]:
        seconds = self._pace.left(step)
        return [] if seconds is None else [f"{timedelta(seconds=round(seconds))} left"]

    def _live_line(self) -> str:
        """The parts of the live line that fit beside the bar; the most important parts come first."""
        values, epoch = self._values, self._epochs * self._step / self._total
        wanted: list[tuple[int, str]] = [
            (0, f"epoch {epoch:.2f}/{self._epochs:g}"),
            (5, f"step {self._step:,}/{self._total:,}"),
        ]
        for rank, key in ((2, "loss"), (6, "lr"), (3, "images_per_second"), (7, "data_wait"), (8, "peak_memory_gib")):
            wanted += [(rank, _WORDS[key](values[key]))] if key in values else []
        wanted += [(4, f"best {self._best:.2f} %")] if self._best is not None else []
        wanted += [(1, each) for each in self._left(self._step)]
        room = _columns() - _BAR
        while len(wanted) > 1 and sum(len(text) + 2 for _, text in wanted) > room:
            wanted.remove(max(wanted))
        return "  ".join(text for _, text in wanted)


def _rate(value: float) -> str:
    return f"{value:,.0f} images/s" if value >= 100 else f"{value:.1f} images/s"


_WORDS: dict[str, Callable[[float], str]] = {
    "loss": lambda value: f"loss {value:.3f}",
    "lr": lambda value: f"lr {value:.2e}",
    "images_per_second": _rate,
    "data_wait": lambda value: f"wait {100 * value:.0f} %",
    "peak_memory_gib": lambda value: f"{value:.1f} GiB",
}


def train_words(values: Mapping[str, float]) -> list[str]:
    """The figures of a training line, with units; figures that are usually zero appear only if they are not."""
    words = [_WORDS[key](values[key]) for key in ("loss", "lr") if key in values]
    if "grad_norm" in values:
        words.append(f"gradient {values['grad_norm']:.2f}")
    words += [_WORDS[key](values[key]).rjust(width) for key, width in
              (("images_per_second", 14), ("data_wait", 9), ("peak_memory_gib", 8)) if key in values]  # fmt: skip
    if values.get("skipped"):
        words.append(f"{values['skipped']:.0f} skipped")
    return words


def score_words(values: Mapping[str, float]) -> list[str]:
    """The figures of an evaluation; those of the moving average follow the model's own."""
    words = []
    for prefix, whose in (("", ""), ("ema_", _AVERAGE)):
        for key, name, unit in (("top1", "top-1", " %"), ("top5", "top-5", " %"), ("loss", "loss", "")):
            value = values.get(f"{prefix}{key}")
            if value is not None and (not prefix or key == "top1"):
                words.append(f"{whose}{name} {value:.3f}" if not unit else f"{whose}{name} {value:.2f}{unit}")
    known = {f"{prefix}{key}" for prefix in ("", "ema_") for key in ("top1", "top5", "loss", "nonfinite")}
    known |= {key for key in values if key.startswith("ema_")}
    others = {key: value for key, value in values.items() if key not in known and not math.isnan(value)}
    return words + [f"{key} {value:.4g}" for key, value in others.items()]


def _score_line(place: str, scores: list[str], mark: str) -> str:
    """An evaluation in one line; if that is too long, the moving average and the mark are on the next one."""
    words = [place, *scores, *([mark] if mark else [])]
    if len("  ".join(words)) <= COLUMNS:
        return "  ".join(words)
    own = next((number for number, word in enumerate(words) if word.startswith(_AVERAGE)), len(words) - 1)
    rest = [" " * _INDENT + words[own], *words[own + 1 :]]
    return fold(words[:own], _INDENT, "  ") + "\n" + fold(rest, _INDENT, "  ")


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 80
