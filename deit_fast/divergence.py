"""The end of a run that diverges: when it comes, and the images with which it began."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deit_fast.data.sampler import TrainSampler
from deit_fast.data.sources import Source
from deit_fast.distributed import World
from deit_fast.errors import RunError, printable
from deit_fast.files import atomic_path
from deit_fast.sections import Run
from deit_fast.step import Meter

NAMED = 3  # images in the message; the file has all


def check_interval(run: Run) -> int:
    """Steps between two calls of `check_divergence`: each waits for the device."""
    return min(run.log_every, run.nonfinite_limit)


def check_divergence(
    meter: Meter, step: int, run: Run, samplers: Sequence[TrainSampler], source: Source, world: World, out: Path
) -> None:
    """Raises RunError, on every process the same, where the last run.nonfinite_limit of `step` steps, or more,
    were all skipped.

    It names the first of them and its images: those of the processes whose own loss was not finite, or all where every
    loss was and only the gradient was not. The main process lists them in out/nonfinite.txt.
    """
    limit = run.nonfinite_limit
    in_a_row = int(meter.skipped_in_a_row.item())
    if not world.any(in_a_row >= limit):
        return
    first = step - in_a_row
    indices = np.concatenate([sampler.batch(first).indices for sampler in samplers])
    found = world.gather((bool(meter.began_here.item()), indices.tolist()))
    ranks = [rank for rank, (began, _) in enumerate(found) if began]
    images = [index for rank in ranks or range(world.size) for index in dict.fromkeys(found[rank][1])]
    names = [printable(source.name(index)) for index in images]
    path = out / "nonfinite.txt"
    if world.is_main:
        with atomic_path(path) as temporary:
            temporary.write_text("\n".join(names) + "\n", encoding="utf-8")
    what = f"the loss on rank {', '.join(map(str, ranks))}" if ranks else "the gradient, though no loss,"
    raise RunError(
        f"step {first + 1}: {what} was not finite, nor was a step since: {in_a_row} in a row are too many for "
        f"run.nonfinite_limit={limit}; its {len(names)} images, {', '.join(names[:NAMED])} and so on, are in {path}"
    )
