"""The two things that end a run by themselves: a loss that is no number, and too many images that cannot be used.

**Why does my loss become NaN at step 1000?** A step whose gradient norm is not finite changes nothing: the optimizer
sees it on the device and skips the step, on every process alike. In metrics.jsonl such steps are counted in `skipped`,
and `loss` and `grad_norm` are means over the others (null where there was no other). A few in a run do no harm.
After run.nonfinite_limit of them in a row the run ends. One line then says at which step they began, and on which
ranks the loss was not finite. Where it names the gradient alone, every loss was finite, and the backward pass
overflowed. nonfinite.txt in the run folder lists the images of that step, and the checkpoints before it are whole.
What to turn, the likeliest first:

* optim.lr down or schedule.warmup_epochs up, where `grad_norm` in metrics.jsonl grows towards that step;
* optim.max_grad_norm down (null is no clipping), where `grad_norm` jumps from one line to the next;
* run.precision=fp32, to see whether bf16 is the reason;
* the images themselves, where another seed ends with the same ones: `deit-fast data check` reads them all.

A run goes on with the recipe it was started with. One with other values is another run: give it a folder of its own,
and with --init the weights of a checkpoint from before.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from deit_fast.data.loader.batches import Batch
from deit_fast.data.sources.base import Source
from deit_fast.recipe.sections import Run
from deit_fast.runtime.errors import DataError, RunError, printable
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

    def note(self, batches: Sequence[Batch]) -> None:
        """Notes the images of one step, those that took the places of bad ones among them."""
        self._images.append(np.concatenate([batch.indices for batch in batches]).tolist())

    def check(self, meter: Meter, step: int) -> None:
        """Raises RunError, on every process the same, where the last steps up to `step` were all skipped.

        That is run.nonfinite_limit of them or more. The error names the first of them and the images of the processes
        whose own loss was not finite. Where every loss was finite, and the gradient alone was not, it names the images
        of all. The main process lists them in out/nonfinite.txt.
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


class BadImages:
    """Distinct images that could not be used, and why; others took their places.

    known: those that the checkpoint had, image -> reason; it is added to, the same on every process. A repaired image
    that no checkpoint has is thereby forgotten by a resumed run. allowed: the largest share of the source's images.
    """

    def __init__(self, known: dict[int, str], source: Source, allowed: float, world: World, out: Path) -> None:
        self._known, self._source, self._allowed, self._world = known, source, allowed, world
        self._path = out / "bad_files.txt"
        self._new: dict[int, str] = {}
        self._write()

    def note(self, batches: Iterable[Batch]) -> None:
        """Notes those of this process's batches."""
        for batch in batches:
            self._new.update(batch.bad)

    def check(self) -> list[str]:
        """Puts the processes' notes together, and returns what is to be said, a line or none; a collective.

        The main process lists all in out/bad_files.txt: name, tab, reason. Raises DataError, on every process the same,
        where they are more than the allowed share.
        """
        new = {image: reason for image, reason in self._new.items() if image not in self._known}
        self._new = {}
        if not self._world.any(bool(new)):
            return []
        before = len(self._known)
        for found in self._world.gather(new):
            self._known.update(found)
        self._write()
        count, images = len(self._known), len(self._source)
        if count > self._allowed * images:
            raise DataError(
                f"data.max_bad={self._allowed:g}: {count} of {images} images cannot be used, {self._path} names them; "
                "mend or remove them (deit-fast data check finds all), or allow more"
            )
        return [f"{count - before} more images cannot be used, {count} of {images} in all: {self._path} names them"]

    def _write(self) -> None:
        if not self._world.is_main:
            return
        if not self._known:
            self._path.unlink(missing_ok=True)
            return
        lines = [f"{printable(self._source.name(image))}\t{self._known[image]}\n" for image in sorted(self._known)]
        with atomic_path(self._path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
