"""The two things that end a run by themselves: a loss that is no number, and too many images that cannot be used.

**Why does my loss become NaN at step 1000?** A step whose gradient norm is not finite changes nothing: the optimizer
sees it on the device and skips the step, on every process alike. In metrics.jsonl such steps are counted in `skipped`,
and `loss` and `grad_norm` are means over the others (null where there was no other). A few in a run do no harm.
After run.nonfinite_limit of them in a row the run ends. One line then says at which step they began, and on which
ranks the loss was not finite. Where it names the gradient alone, every loss was finite, and the backward pass
overflowed. What to turn, the likeliest first:

* optim.lr down or schedule.warmup_epochs up, where `grad_norm` in metrics.jsonl grows towards that step;
* optim.max_grad_norm down (null is no clipping), where `grad_norm` jumps from one line to the next;
* run.precision=fp32, to see whether bf16 is the reason;
* the weights of --init, where the first step is skipped already: a file may hold some that are not finite;
* the images themselves, where another seed ends with the same ones: `deit-fast data check` reads them all;
* mix.mixup=0 mix.cutmix=0, where the images alone give a finite loss: mixing is all that a batch has beside them.

A run goes on with the recipe it was started with. One with other values is another run: give it a folder of its own,
and with --init the weights of a checkpoint from before. --init takes weights alone: schedule and moments start anew.
No checkpoint is written inside a row of skipped steps, so the same command ends again at the same step. The last
checkpoint has finite weights, which may be useless all the same, as a loss often explodes some hundred steps before it
overflows: evaluate one before you build on it.

nonfinite.txt in the run folder lists the images of the first skipped step. Step N of a message or of metrics.jsonl is
the N-th, which is step N - 1 of everything that counts from 0: the loader, the samplers, `learning_rate`. These lines
give its images and draws again, `recipe` being that of the run folder's recipe.json:

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
    """Steps between two calls of `Divergence.check`: each waits for the device."""
    return min(run.log_every, run.nonfinite_limit)


class _Noted(NamedTuple):
    """What a step was made with."""

    images: list[int]
    lr: float


class Divergence:
    """Watches for a run of steps that were all skipped."""

    def __init__(self, job: Job) -> None:
        self._job, run = job, job.recipe.run
        self._path = job.out / "nonfinite.txt"
        # As many steps as can be skipped in a row before `check` is called again.
        self._noted: deque[_Noted] = deque(maxlen=run.nonfinite_limit + check_interval(run))
        self.skipping = False
        """Whether the step before the last `check` was skipped; on every process the same."""

    def note(self, batches: Sequence[Batch], lr: float) -> None:
        """Notes the images of one step, those that took the places of bad ones among them, and its learning rate."""
        self._noted.append(_Noted(np.concatenate([batch.indices for batch in batches]).tolist(), lr))

    def check(self, meter: Meter, step: int) -> str:
        """The line to end the run with where the last steps up to `step` were all skipped, else nothing; a collective.

        That is run.nonfinite_limit of them or more. The line, on every process the same, is about the first of them.
        The main process lists its images in out/nonfinite.txt: those of the processes whose own loss was not finite.
        Where every loss was finite, and the gradient alone was not, they are the images of all.
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

        The main process lists all in out/bad_files.txt: name, tab, reason. Raises BadDataError, on every process the
        same, where they are more than the allowed share.
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
