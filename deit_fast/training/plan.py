"""Plans a run before it starts: steps, memory, hours and disk, each number with its source."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deit_fast.data.loader.sampler import epoch_views, steps_per_epoch
from deit_fast.data.loader.streaming_plan import disk_needed
from deit_fast.data.sources.base import Source, file_sizes
from deit_fast.models.cost import count_parameters, forward_macs
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import training_images, training_set
from deit_fast.runtime.errors import RecipeError
from deit_fast.training.hours import Hours, training_hours
from deit_fast.training.memory import HEADROOM, StepMemory, step_memory
from deit_fast.training.passes import possible_passes, with_passes
from deit_fast.training.schedule import total_steps
from deit_fast.zoo.devices import Device
from deit_fast.zoo.reference_results import find_curve

GIB = 2**30
_SAMPLED = 1000  # number of files whose sizes stand for all files


@dataclass(frozen=True)
class Machine:
    """The machines for which a run is planned."""

    processes: int
    """Number of processes: one for each GPU, or on CPUs as given."""
    device: Device | None
    """The kind of GPU; None if unknown, or for CPUs."""
    memory: float
    """Memory of each process, bytes."""
    on_gpu: bool
    dtype: torch.dtype
    """Type of the forward pass."""


@dataclass(frozen=True)
class Images:
    """The facts about the training data that a plan needs."""

    count: int
    classes: int
    place: str
    """Their place, or their name."""
    validation: int | None = None
    """Number of validation images; None if unknown or if there are none."""
    bytes: int | None = None
    """Approximate bytes on the disk; None if unknown."""
    shard_bytes: tuple[int, ...] | None = None
    """Sizes of the shards, bytes, if they are fetched from a store."""


@dataclass(frozen=True)
class RunPlan:
    """The needs of a run; sizes in bytes."""

    recipe: Recipe
    """The recipe, with the number of passes that fits."""
    machine: Machine
    images: Images
    parameters: int
    gmacs: float
    """Billions of multiply-accumulates of one image's forward pass, called GFLOPs in papers."""
    steps_per_epoch: int
    steps: int
    views: int
    """Views of training images in the whole run."""
    memory: StepMemory
    """Memory of a process's step."""
    fits: bool
    """Whether the step fits into the fraction HEADROOM of the memory."""
    reason: str
    """Why the recipe has this number of passes."""
    hours: Hours | None
    """None if nothing is known about such a device."""
    checkpoint: int
    """Size of one checkpoint; `checkpoints` is the size of all that exist at one time."""
    checkpoints: int
    cache: int | None
    """Size of the shards fetched on each node; None if nothing is fetched."""
    published: Mapping[float, float]
    """Epoch -> top-1, %, of the published run; empty if there is none."""
    published_source: str

    @property
    def images_a_pass(self) -> int:
        """Images of one pass in each process."""
        return self.recipe.run.global_batch // (self.machine.processes * self.recipe.run.passes)

    def as_plain(self) -> dict[str, Any]:
        """Plain data for JSON."""
        content = asdict(self) | {"recipe": self.recipe.name, "passes": self.recipe.run.passes}
        content["machine"]["dtype"] = str(self.machine.dtype).removeprefix("torch.")
        content["images"].pop("shard_bytes")
        content |= {"global_batch": self.recipe.run.global_batch, "images_a_pass": self.images_a_pass}
        return content | {"resolution": self.recipe.model.image_size, "model": self.recipe.model.name}


def plan_run(recipe: Recipe, images: Images, machine: Machine, results: Path | None = None) -> RunPlan:
    """The plan for a run of `recipe`, whose number of classes is known. results: folder of the benchmarks' JSON files.

    Raises RecipeError for a batch that the processes cannot divide, and for a batch that is larger than an epoch.
    """
    used = images.count // recipe.data.lanes * recipe.data.lanes
    repeats, batch = recipe.data.repeats, recipe.run.global_batch
    per_epoch = steps_per_epoch(used, repeats, batch)
    if not per_epoch:
        raise RecipeError(f"run.global_batch={batch}: expected at most {epoch_views(used, repeats)}, an epoch's views")
    given = recipe.run.accumulation != "auto"
    recipe, memory = fit_passes(recipe, machine)
    fits = memory.peak <= HEADROOM * machine.memory
    reason = "as given" if given else "the fewest that fit" if fits else "the most there can be"
    steps = total_steps(recipe.schedule, per_epoch)
    average = 1 if recipe.optim.ema_decay is not None else 0
    parameters = count_parameters(recipe.model)
    moments = memory.moments / memory.weights  # optimizer tensors per weight, without frozen weights
    checkpoint = round(4 * parameters * (2 + average + moments))  # the weights are in a .safetensors file too
    curve = find_curve(recipe.name)
    curve = curve if curve is not None and curve.has_classes(images.classes) else None
    return RunPlan(
        recipe, machine, images, parameters, forward_macs(recipe.model) / 1e9, per_epoch, steps, steps * batch, memory,
        fits, reason,
        training_hours(recipe, machine.device, machine.processes, steps * batch, results),
        checkpoint, checkpoint * (recipe.run.keep_checkpoints + 2),  # with the best one and the one being written
        _cache(recipe, images), dict(curve.points) if curve is not None else {},
        f"{curve.source}, {curve.trust}" if curve is not None else "",
    )  # fmt: skip


def fit_passes(recipe: Recipe, machine: Machine) -> tuple[Recipe, StepMemory]:
    """The recipe with the smallest number of passes that fits, else with the largest; and the memory of its steps."""

    def memory_of(passes: int) -> StepMemory:
        images = recipe.run.global_batch // (machine.processes * passes)
        settled = with_passes(recipe, passes)
        return step_memory(settled, images, machine.dtype, machine.processes, machine.on_gpu)

    if recipe.run.accumulation != "auto":
        with_passes(recipe, recipe.run.passes).check_processes(machine.processes)
        return recipe, memory_of(recipe.run.passes)
    possible = possible_passes(recipe, machine.processes)
    limit = HEADROOM * machine.memory
    found = memory_of(possible[0])
    first = 0
    while found.peak > limit and first + 1 < len(possible):
        # The part that depends on the images is proportional to them, so the search jumps to the number that this
        # predicts.
        fixed = found.fixed + found.gradients
        needed = possible[first] * (found.peak - fixed) / max(1.0, limit - fixed)
        first = next((at for at in range(first + 1, len(possible)) if possible[at] >= 0.95 * needed), len(possible) - 1)
        found = memory_of(possible[first])
    return with_passes(recipe, possible[first]), found


def named_images(recipe: Recipe) -> Images:
    """The data set in the recipe's name, with the recipe's number of classes if the recipe has one.

    Raises RecipeError where neither the recipe nor its name tells the number of classes.
    """
    name, count = training_images(recipe)
    known = training_set(recipe)
    classes = recipe.model.num_classes or (known and known.classes)
    if classes is None:
        raise RecipeError("model.num_classes=null: expected --data, which says how many there are, or a number")
    return Images(count, classes, name)


def images_of(source: Source, val_source: Source | None) -> Images:
    """The images of a source. No image is read: sizes are those of shards, or of a sample of files."""
    shards = source.shard_bytes
    stored = _bytes_about(source) if shards is None else int(shards.sum())
    fetched = shards is not None and source.limit_cache(None) is not None
    return Images(
        len(source), len(source.classes), source.place, None if val_source is None else len(val_source), stored,
        tuple(shards.tolist()) if fetched and shards is not None else None,
    )  # fmt: skip


def _bytes_about(source: Source) -> int | None:
    chosen = np.unique(np.linspace(0, len(source) - 1, min(_SAMPLED, len(source))).astype(int)).tolist()
    sizes = file_sizes([source.stored_in(index) for index in chosen])
    known = sizes[sizes >= 0]
    return int(known.mean() * len(source)) if len(known) else None


def _cache(recipe: Recipe, images: Images) -> int | None:
    if images.shard_bytes is None:
        return None
    return disk_needed(np.array(images.shard_bytes), recipe.data.block, recipe.data.lanes, node_lanes=1)


def published_at(points: Mapping[float, float], count: int = 5) -> Sequence[tuple[float, float]]:
    """About `count` epochs of a published series, evenly spread, including its last."""
    epochs = sorted(points)
    last = len(epochs) - 1
    chosen = sorted({round(share * last / count) for share in range(1, count + 1)}) if epochs else []
    return [(epochs[at], points[epochs[at]]) for at in chosen]
