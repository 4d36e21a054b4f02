"""The two guards that end a run: a loss that is not finite, and too many images that cannot be used.

**Why does my loss become NaN at step 1000?** A step whose gradient norm is not finite changes nothing: the optimizer
detects it on the device and skips the step, in every process alike. metrics.jsonl counts such steps in `skipped`. There
`loss` and `grad_norm` are means over the other steps, or null if there was no other step. A few skipped steps in a run
do no harm. After run.nonfinite_limit skipped steps in a row the run ends. One line then says at which step the row
began, and in which ranks the loss was not finite. If the line names the gradient alone, every loss was finite and the
backward pass overflowed. Possible remedies, the likeliest first:

* If `grad_norm` in metrics.jsonl grows towards that step: a lower optim.lr or a longer schedule.warmup_epochs.
* If `grad_norm` jumps from one line to the next: a lower optim.max_grad_norm (null means no clipping).
* To see whether bf16 is the reason: run.precision=fp32.
* If the first step of the run is skipped already: other weights for --init, since a file may hold weights that are not
  finite.
* If another seed fails with the same images: `deit-fast data check`, which reads all images.
* If the images alone give a finite loss: mix.mixup=0 mix.cutmix=0, since mixing is all that a batch adds to its images.

A run resumes only with the recipe with which it was started. A run with other values is another run: give it another
folder and, with --init, the weights of an earlier checkpoint. --init takes weights alone; schedule and moments start
anew. No checkpoint is written between skipped steps, so the same command ends again at the same step. The last
checkpoint has finite weights. They may still be useless, because a loss often explodes some hundred steps before it
overflows: evaluate a checkpoint before you build on it.

nonfinite.txt in the run folder lists the images of the first skipped step. Step N in a message or in metrics.jsonl is
the N-th step. Counters from 0 (the loader, the samplers, `learning_rate`) call it step N - 1. These lines make its
images and draws again, where `recipe` is that of the run folder's recipe.json:

    job = plan_job(recipe, open_source(data, "train"), None, out, join_world())
    loader = build_loader(job, N - 1)
    batch = BatchBuilder(recipe, job.world.device)(next(iter(loader)))  # with run.accumulation, the first of so many
"""

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from deit_fast.data.loader.batches import Batch
from deit_fast.data.sources.base import Source
from deit_fast.recipe.sections import Run
from deit_fast.runtime.errors import BadDataError, printable
from deit_fast.runtime.files import atomic_path
from deit_fast.runtime.metrics_log import told
from deit_fast.runtime.world import World
from deit_fast.training.job import Job
from deit_fast.training.step import Meter


def check_interval(run: Run) -> int:
    """Steps between two calls of `Divergence.check`, each of which waits for the device."""
    return min(run.log_every, run.nonfinite_limit)


class _Noted(NamedTuple):
    """The images and the learning rate of a step."""

    images: list[int]
    lr: float


class Divergence:
    """Detects a row of consecutive skipped steps."""

    def __init__(self, job: Job) -> None:
        self._job, run = job, job.recipe.run
        self._path = job.out / "nonfinite.txt"
        # The longest row of skipped steps before `check` is called again.
        self._noted: deque[_Noted] = deque(maxlen=run.nonfinite_limit + check_interval(run))
        self.skipping = False
        """Whether the step before the last `check` was skipped; the same in every process."""

    def note(self, batches: Sequence[Batch], lr: float) -> None:
        """Notes one step's images (substitutes of bad images included) and its learning rate."""
        self._noted.append(_Noted(np.concatenate([batch.indices for batch in batches]).tolist(), lr))

    def check(self, meter: Meter, step: int) -> str:
        """The line with which the run ends, if run.nonfinite_limit steps or more up to `step` were skipped; else "".

        This is a collective, and the line is the same in every process. It is about the first step of the row. The main
        process lists that step's images in out/nonfinite.txt: the images of the processes whose loss was not finite, or
        of all processes if every loss was finite and only the gradient was not.
        """
        world, run = self._job.world, self._job.recipe.run
        in_a_row = int(meter.skipped_in_a_row.item())
        self.skipping = world.any(in_a_row > 0)
        if not self.skipping or not world.any(in_a_row >= run.nonfinite_limit):
            return ""
        images, lr = self._noted[-in_a_row]
        found = world.gather((bool(meter.began_here.item()), images))
        ranks = [rank for rank, (began, _) in enumerate(found) if began]
        first = step - in_a_row + 1
        if world.is_main:
            self._write(first, [found[rank][1] for rank in ranks or range(world.size)])
        what = f"the loss on rank {', '.join(map(str, ranks))}" if ranks else "the gradient, though no loss,"
        clip = self._job.recipe.optim.max_grad_norm
        settings = f"learning rate of that step {lr:.3g}, optim.max_grad_norm={'null' if clip is None else f'{clip:g}'}"
        precision = "bf16" if self._job.dtype == torch.bfloat16 else "fp32"
        return (
            f"step {first}: {what} was not finite, and {in_a_row} steps in a row were skipped "
            f"(run.nonfinite_limit={run.nonfinite_limit}, looked at every {check_interval(run)} steps); {settings}, "
            f"computed in {precision}; what to turn: README, 'A loss that is not finite'; "
            f"images of that step: {self._path}"
        )

    def _write(self, first: int, images: Iterable[list[int]]) -> None:
        job = self._job
        epoch = f"epoch {first / job.steps_per_epoch:.4g}"  # as in metrics.jsonl
        names = [job.source.name(index) for part in images for index in dict.fromkeys(part)]
        lines = [f"# step {first}, {epoch}, run.seed={job.recipe.run.seed}", *map(printable, names)]
        with told(self._path.name), atomic_path(self._path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


class BadImages:
    """Distinct images that could not be used, with the reasons; other images took their places.

    known: image -> reason, from the checkpoint; it is extended, equally in every process. An image that was repaired,
    and that is in no checkpoint, is therefore forgotten by a resumed run. allowed: the largest fraction of the source's
    images.
    """

    def __init__(self, known: dict[int, str], source: Source, allowed: float, world: World, out: Path) -> None:
        self._known, self._source, self._allowed, self._world = known, source, allowed, world
        self._path = out / "bad_files.txt"
        self._new: dict[int, str] = {}
        self._write()

    def note(self, batches: Iterable[Batch]) -> None:
        """Notes the bad images of this process's batches."""
        for batch in batches:
            self._new.update(batch.bad)

    def check(self) -> list[str]:
        """Combines the notes of all processes, and returns a line to print, or none; a collective.

        The main process lists all bad images in out/bad_files.txt: name, tab, reason. Raises BadDataError, in every
        process alike, where they exceed the allowed fraction.
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
            raise BadDataError(
                f"data.max_bad={self._allowed:g}: {count} of {images} images cannot be used, {self._path} names them; "
                "mend them (deit-fast data check finds all), or remove them and go on with data.may_change=true, or "
                "allow more"
            )
        return [f"{count - before} more images cannot be used, {count} of {images} in all: {self._path} names them"]

    def _write(self) -> None:
        if not self._world.is_main:
            return
        if not self._known:
            self._path.unlink(missing_ok=True)
            return
        lines = [f"{printable(self._source.name(image))}\t{self._known[image]}\n" for image in sorted(self._known)]
        with told(self._path.name), atomic_path(self._path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
