"""`deit-fast plan`: the needs of a run before it starts. torch is imported late."""

import argparse
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from deit_fast.cli.arguments import OVERRIDES, Parser, complain
from deit_fast.recipe.parse import read_val_fraction
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import describe_rate, get_recipe
from deit_fast.runtime.durations import span
from deit_fast.runtime.errors import RecipeError
from deit_fast.runtime.files import json_text
from deit_fast.runtime.stdout import tell
from deit_fast.zoo.devices import DEVICES, Device, device_named

if TYPE_CHECKING:
    from deit_fast.training.plan import Images, Machine, RunPlan

GIB = 2**30
_FACT = 12
_COST = {"s": "GPU-seconds", "min": "GPU-minutes", "h": "GPU-hours"}


def add_plan(subcommands: "argparse._SubParsersAction[Parser]") -> None:
    """Adds the command `plan`."""
    plan = subcommands.add_parser(
        "plan",
        help="what a run takes: steps, batch, memory, hours, disk, and what the published run reached",
        epilog="Example: deit-fast plan deit3_base_1k_192 --data /imagenet --gpus 8xh100",
    )
    plan.add_argument("recipe", help="name in the recipe table, or a .toml or .json file")
    plan.add_argument("--data", help="as for train; default: the number of images that the recipe's name speaks of")
    plan.add_argument(
        "--val", metavar="DATA|SHARE", help="validation data, or the share to hold out, as train takes it"
    )
    plan.add_argument("--labels", metavar="FILE", help="labels of validation images without class folders")
    plan.add_argument(
        "--gpus", type=_gpus, metavar="N|NAME|NxNAME",
        help=f"GPUs, of {', '.join(name for name in DEVICES if name != 'tpu-v4')}; default: this machine's, or its CPU",
    )  # fmt: skip
    plan.add_argument("--memory", type=_gib, metavar="GIB", help="memory of each GPU; default: what its kind has")
    plan.add_argument("--json", action="store_true", help="as JSON, sizes in bytes")
    plan.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    plan.set_defaults(run=run_plan)


def run_plan(arguments: argparse.Namespace) -> int:
    """Prints the plan; returns 0."""
    recipe = get_recipe(arguments.recipe, arguments.overrides)
    from deit_fast.training.fit_batch import fit_batch
    from deit_fast.training.plan import plan_run

    recipe, images = _open(recipe, arguments)
    machine = _machine(recipe, arguments.gpus, arguments.memory)
    if arguments.data is not None:
        recipe, _ = fit_batch(recipe, images.count, machine.processes)
    plan = plan_run(recipe, images, machine)
    if arguments.json:
        tell(json_text(plan.as_plain()))
        return 0
    if line := describe_rate(recipe, arguments.recipe):
        complain(line)
    tell(plan_as_text(plan))
    return 0


def plan_as_text(plan: "RunPlan") -> str:
    """The plan as a heading and one or two lines for each fact."""
    machine = plan.machine
    kind = machine.device.name if machine.device is not None else "GPU" if machine.on_gpu else "CPU"
    head = f"{plan.recipe.name} on {machine.processes} x {kind}, {machine.memory / GIB:,.0f} GiB"
    lines = [head, ""]
    for name, fact in facts_of(plan).items():
        first, *others = fact.splitlines()
        lines += [f"  {name:{_FACT}}{first}", *(f"  {'':{_FACT}}{each}" for each in others)]
    return "\n".join(lines)


def facts_of(plan: "RunPlan") -> Mapping[str, str]:
    """The facts by name, in words; a line break begins a continuation line."""
    from deit_fast.training.banner import describe_batch
    from deit_fast.training.plan import published_at

    recipe, images, memory = plan.recipe, plan.images, plan.memory
    held_out = f", {images.validation:,} to validate on" if images.validation is not None else ""
    facts = {
        "data": f"{images.count:,} images of {images.classes:,} classes{held_out}: {images.place}",
        "schedule": f"{recipe.schedule.epochs:g} epochs of {plan.steps_per_epoch:,} steps, {plan.steps:,} steps, "
        f"{plan.views:,} views",
        "model": f"{recipe.model.name} at {recipe.model.image_size} px: {plan.parameters / 1e6:,.1f} M parameters, "
        f"{plan.gmacs:,.2f} GFLOPs an image",
        "batch": describe_batch(recipe, plan.machine.processes, plan.reason),
        "memory": f"{_size(memory.peak)} of {_size(plan.machine.memory)} in each process, calculated for an eager step"
        + ("" if plan.fits else ": TOO LITTLE")
        + "\n"
        + ", ".join(
            f"{key} {_size(getattr(memory, key))}"
            for key in ("weights", "gradients", "moments", "average", "activations")
        ),
        "time": _time(plan),
        "disk": _disk(plan),
    }
    if plan.published:
        reached = ", ".join(f"{epoch:g}: {top1:.1f}" for epoch, top1 in published_at(plan.published))
        last = max(plan.published)
        other = "" if recipe.schedule.epochs >= last - 1 else f"; its schedule was of {last:g} epochs, compare no other"
        facts["published"] = f"top-1 in % by epoch, {reached}\n{plan.published_source}{other}"
    return facts


def _time(plan: "RunPlan") -> str:
    hours, count = plan.hours, plan.machine.processes
    if hours is None:
        return "not known: nothing was measured or published of such a device; --gpus NxNAME names one"
    kind = "measured" if hours.measured else "estimate, by peak rates and FLOPs where it is of another device or size"
    wall, unit = span(3600 * hours.least, 3600 * hours.most)
    cost, cost_unit = span(3600 * hours.least * count, 3600 * hours.most * count)
    lines = [f"{wall} {unit}, {cost} {_COST[cost_unit]} ({kind})", *(f"by {each}" for each in hours.sources)]
    return "\n".join(lines)


def _disk(plan: "RunPlan") -> str:
    stored = f"data about {_size(plan.images.bytes)}, " if plan.images.bytes is not None else ""
    cache = f", cache of fetched shards {_size(plan.cache)} on each node" if plan.cache is not None else ""
    return f"{stored}checkpoints {_size(plan.checkpoint)} each, {_size(plan.checkpoints)} at most{cache}"


def _size(count: float) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.0f} MiB"


def _open(recipe: Recipe, arguments: argparse.Namespace) -> "tuple[Recipe, Images]":
    from deit_fast.data.sources.classes import match_classes, resolve_classes
    from deit_fast.data.sources.held_out import all_but, choose_held_out
    from deit_fast.data.sources.open import find_validation, open_source
    from deit_fast.data.sources.subset import Subset
    from deit_fast.training.plan import images_of, named_images

    if arguments.data is None:
        for option in ("val", "labels"):
            if getattr(arguments, option) is not None:
                raise RecipeError(f"--{option} {getattr(arguments, option)}: expected --data beside it")
        return recipe, named_images(recipe)
    fraction = None if arguments.val is None else read_val_fraction(arguments.val)
    if fraction is not None:
        recipe = recipe.derive(data={"val_fraction": fraction})
    val_uri = None if fraction is not None else arguments.val or find_validation(arguments.data)
    labels = arguments.labels
    source = open_source(arguments.data, "train", recipe.data.category, labels=labels if val_uri is None else None)
    recipe = resolve_classes(recipe, source)
    val_source = open_source(val_uri, "val", recipe.data.category, labels=labels) if val_uri else None
    if val_source is not None:
        match_classes(val_source, source.classes, f"{arguments.data}'s classes")
    elif recipe.data.val_fraction:
        held_out = choose_held_out(source, recipe.data.val_fraction, recipe.data.val_seed)
        source, val_source = Subset(source, all_but(source, held_out)), Subset(source, held_out)
    return recipe, images_of(source, val_source)


def _machine(recipe: Recipe, gpus: tuple[int | None, str] | None, memory: float | None) -> "Machine":
    """The machine that the arguments name, or this one. Raises RecipeError where the amount of memory is unknown."""
    import torch

    from deit_fast.infer.precision import choose_dtype
    from deit_fast.runtime.host_memory import available_memory
    from deit_fast.training.plan import Machine

    here = torch.cuda.is_available() and recipe.run.device != "cpu"
    if gpus is None and not here and memory is None:
        dtype = choose_dtype(recipe.run, torch.device("cpu"))
        free = available_memory()
        processes = int(os.environ.get("WORLD_SIZE", "1"))  # the number of processes that torchrun would start here
        each = float("inf") if free is None else free / processes
        return Machine(processes, None, each, on_gpu=False, dtype=dtype)
    count, name = gpus or (None, "")
    device: Device | None = DEVICES[name] if name else None
    gib = memory if memory is not None else device.memory_gib if device is not None else None
    if here and not name:
        properties = torch.cuda.get_device_properties(0)
        device, count = device_named(properties.name), count or torch.cuda.device_count()
        gib = properties.total_memory / GIB if gib is None else gib
    if gib is None:
        raise RecipeError(f"--gpus {count}: expected --memory GIB, or the name of a kind beside it, as {count}xh100")
    dtype = torch.float32 if recipe.run.precision == "fp32" else torch.bfloat16
    return Machine(count or 1, device, gib * GIB, on_gpu=True, dtype=dtype)


def _gpus(text: str) -> tuple[int | None, str]:
    names = [name for name in DEVICES if name != "tpu-v4"]
    found = re.fullmatch(r"(?:(\d+)(?:x(.+))?|(.+))", text.lower())
    assert found is not None or not text
    count = int(found.group(1)) if found and found.group(1) else None
    name = (found.group(2) or found.group(3) or "") if found else ""
    if found is None or count == 0 or (name and name not in names):
        raise argparse.ArgumentTypeError(f"expected N, NAME or NxNAME with a NAME of {', '.join(names)}, got {text!r}")
    return count, name


def _gib(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of GiB above 0, got {text!r}")
    return value
