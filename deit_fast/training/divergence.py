"""The end of a run that diverges: when it comes, and the images with which it began."""

from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from deit_fast.data.loader.batches import Batch
from deit_fast.data.sources.base import Source
from deit_fast.recipe.sections import Run
from deit_fast.runtime.errors import RunError, printable
from deit_fast.runtime.files import atomic_path
from deit_fast.runtime.world import World
from deit_fast.training.step import Meter

NAMED = 3  # images in the message; the file has all


def check_interval(run: Run) -> int:
    """Steps between two calls of `Divergence.check`: each waits for the device."""
    return min(run.log_every, run.nonfinite_limit)


class Divergence:
    """Watches for a run of steps that were all skipped."""

    def __init__(self, run: Run, source: Source, world: World, out: Path) -> None:
        self._limit, self._source, self._world = run.nonfinite_limit, source, world
        self._path = out / "nonfinite.txt"
        # As many steps as can be skipped in a row before `check` is called again.
        self._images: deque[list[int]] = deque(maxlen=run.nonfinite_limit + check_interval(run))

    def add(self, batches: Iterable[Batch]) -> None:
        """Notes the images of one step, those that took the places of bad ones among them."""
        self._images.append(np.concatenate([batch.indices for batch in batches]).tolist())

    def check(self, meter: Meter, step: int) -> None:
        """Raises RunError, on every process the same, where the last run.nonfinite_limit of `step` steps, or more,
        were all skipped.

        It names the first of them and its images: those of the processes whose own loss was not finite, or all where
        every loss was and only the gradient was not. The main process lists them in out/nonfinite.txt.
        """
        in_a_row = int(meter.skipped_in_a_row.item())
        if not self._world.any(in_a_row >= self._limit):
            return
        found = self._world.gather((bool(meter.began_here.item()), self._images[-in_a_row]))
        ranks = [rank for rank, (began, _) in enumerate(found) if began]
        images = [index for rank in ranks or range(self._world.size) for index in dict.fromkeys(found[rank][1])]
        names = [printable(self._source.name(index)) for index in images]
        if self._world.is_main:
            with atomic_path(self._path) as temporary:
                temporary.write_text("\n".join(names) + "\n", encoding="utf-8")
        what = f"the loss on rank {', '.join(map(str, ranks))}" if ranks else "the gradient, though no loss,"
        raise RunError(
            f"step {step - in_a_row + 1}: {what} was not finite, nor was a step since: {in_a_row} in a row are too "
            f"many for run.nonfinite_limit={self._limit}; its {len(names)} images, {', '.join(names[:NAMED])} and so "
            f"on, are in {self._path}"
        )
