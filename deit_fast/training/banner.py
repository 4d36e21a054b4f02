"""What is said at the start of a run: device, model, data, batch, schedule, and output folders."""

import re

import torch

from deit_fast.checkpoint.state import TrainState
from deit_fast.infer.compile import wants_compile
from deit_fast.infer.precision import describe_attention
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.fold import fold
from deit_fast.runtime.hardware import cpu_threads
from deit_fast.runtime.world import World
from deit_fast.training.job import Job
from deit_fast.training.passes import describe_device
from deit_fast.zoo import find_family, find_published


def describe_start(job: Job, state: TrainState, reason: str) -> list[str]:
    """Six texts, of a line each where 80 columns suffice, for a run that starts or resumes with `state`.

    reason: why a step has this number of passes.
    """
    recipe, schedule = job.recipe, job.recipe.schedule
    kept = [] if job.store is None else [f"kept in {job.store.uri}"]
    facts = {
        "device": _parts(_device(recipe, job.world, job.dtype)),
        "model": _parts(f"{recipe.model.name} at {recipe.model.image_size} px, {_size(recipe, state)}"),
        "data": _data(job),
        "batch": _parts(describe_batch(recipe, job.world.size, reason)),
        "schedule": _parts(
            f"{recipe.optim.name}, peak rate {recipe.optim.lr:g}; {_count(schedule.epochs, 'epoch')} of "
            f"{_count(job.steps_per_epoch, 'step')}, {job.total_steps:,} in all, "
            f"{_count(schedule.warmup_epochs, 'epoch')} of warmup"
            + (f"; from step {state.step:,} on" if state.step else "")
        ),
        "out": [f"{job.out}:", f"checkpoints/, metrics.jsonl, tensorboard/, curves.png{';' if kept else ''}", *kept],
    }
    return [fold([f"{name:<9}", *parts], indent=10) for name, parts in facts.items()]


def _parts(text: str) -> list[str]:
    """The parts of a text without paths, between which a line may end: after a semicolon or comma, before a bracket."""
    return re.split(r"(?<=[;,]) | (?=\()", text)


def describe_batch(recipe: Recipe, processes: int, reason: str) -> str:
    """The global batch as processes x passes x images, and the reason for this division."""
    passes, batch = recipe.run.passes, recipe.run.global_batch
    parts = [_count(processes, "process", "es"), _count(passes, "pass", "es")]
    images = _count(batch // (processes * passes), "image")
    return f"{batch:,} views = {' x '.join(parts)} x {images} ({reason})"


def _device(recipe: Recipe, world: World, dtype: torch.dtype) -> str:
    cores = f" of {_count(cpu_threads(), 'core')}" if world.device.type == "cpu" else ""
    kernels = describe_attention(world.device, dtype) if find_family(recipe.model.name).has_attention else "none"
    compiled = "torch.compile" if wants_compile(recipe.run, world.device) else "eager"
    kind = "bf16" if dtype == torch.bfloat16 else "fp32"
    return f"{world.size} x {describe_device(world.device)}{cores}; {kind}; attention {kernels}; {compiled}"


def _size(recipe: Recipe, state: TrainState) -> str:
    parameters = sum(each.numel() for each in state.model.parameters())
    rows = find_published([recipe.model.name])
    gmacs = next((row.gmacs for row in rows if row.resolution == recipe.model.image_size), None)
    return f"{parameters / 1e6:,.2f} M parameters" + (f", {gmacs:g} GFLOPs an image" if gmacs is not None else "")


def _data(job: Job) -> list[str]:
    source, val = job.source, job.val_source
    held_out = ["no validation"] if val is None else [f"validation on {len(val):,} of", val.place]
    images = f"{len(source):,} images of {_count(len(source.classes), 'class', 'es')} in"
    return [images, f"{source.place};", *held_out]


def _count(number: float, what: str, plural: str = "s") -> str:
    return f"{number:,.12g} {what}{plural if number != 1 else ''}"
