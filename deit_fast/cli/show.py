"""The output of `deit-fast show`: the recipe table, or one recipe with every value and the facts that follow."""

import math
import re
import textwrap
from itertools import islice

from deit_fast.data.loader.sampler import epoch_views, steps_per_epoch
from deit_fast.recipe.differences import as_word, differences
from deit_fast.recipe.schema import SECTIONS, Recipe
from deit_fast.recipe.sections import Data, Model, Schedule
from deit_fast.recipe.table import GROUPS, describe_rate, find_origin, training_images
from deit_fast.runtime.table import plain_table
from deit_fast.training.schedule import learning_rate, total_steps
from deit_fast.zoo import find_architecture

WIDTH = 100
GPUS = 8  # number in a usual node, by which the batch is divided here
_COMMENT = 44  # column at which a value's meaning begins
_FACT = 18
_CELLS = 4  # learning rates per line


def list_as_text() -> str:
    """The recipe table: a heading per source, a line per recipe."""
    rows = ((f"  {recipe.name}", recipe.description.splitlines()[0]) for each in GROUPS.values() for recipe in each)
    lines = iter(plain_table(rows))
    return "\n\n".join("\n".join([source, *islice(lines, len(each))]) for source, each in GROUPS.items())


def recipe_as_text(recipe: Recipe, num_images: int | None = None, given: str | None = None) -> str:
    """Description, facts and every value of a recipe, each as a line that can be given back as an override."""
    lines = [recipe.name, ""]
    for paragraph in recipe.description.splitlines():
        lines += _wrap(paragraph.lstrip(), " " * (len(paragraph) - len(paragraph.lstrip())))
    lines += ["", "What it amounts to"]
    for name, fact in derive_facts(recipe, num_images, given).items():
        first, *others = fact.splitlines()
        lines += [*_wrap(first, f"  {name:{_FACT}}"), *(f"  {'':{_FACT}}{line}" for line in others)]
    for name, base in SECTIONS.items():
        lines.append("")
        section = getattr(recipe, name)
        fields = type(section).model_fields
        for key, value in section.model_dump(mode="json").items():
            word = f"{name}.{key}={as_word(value)}"
            meaning = " ".join(str(fields[key].description).split())
            if key == "name" and len(base.kinds()) > 1:
                meaning += f" Others: {', '.join(kind for kind in base.kinds() if kind != value)}."
            lines += _wrap(meaning, f"{word:{_COMMENT}}  # ", f"{'':{_COMMENT}}  # ")
    return "\n".join(lines)


def changes_as_text(recipe: Recipe, name: str) -> list[str]:
    """A line for each value in which the recipe differs from its origin: `section.key=value  # was VALUE`.

    The origin is the row of the table, the base of a recipe's file, or the row that a run's recipe.json names. Raises
    RecipeError for a file with neither.
    """
    origin = find_origin(name)
    lines = []
    for key, ours, theirs in differences(recipe, origin):
        word = key if ours is None else f"{key}={ours}"
        was = f"none in {origin.name}" if theirs is None else f"was {theirs}"
        lines.append(f"{word:{_COMMENT}}  # {was}" + (", gone" if ours is None else ""))
    return lines or [f"as {origin.name}"]


def derive_facts(recipe: Recipe, num_images: int | None = None, given: str | None = None) -> dict[str, str]:
    """Facts that follow from a recipe's values, by name, in words: parameters, steps, learning rates and the like.

    num_images: number of training images, instead of that of the data set in the recipe's name. given: the name of
    the row, or of the file, to which words were applied.
    """
    model, run, repeats = recipe.model, recipe.run, recipe.data.repeats
    data, known = training_images(recipe)
    images = known if num_images is None else num_images
    used = images // recipe.data.lanes * recipe.data.lanes
    views, steps = epoch_views(used, repeats), steps_per_epoch(used, repeats, run.global_batch)
    total = total_steps(recipe.schedule, steps)
    seen = total * run.global_batch
    of = f"{views:,} views of {math.ceil(views / repeats):,} images" if repeats > 1 else f"{views:,} images"
    facts = {
        "training images": f"{images:,}" + (f" ({data}; --images N for another number)" if num_images is None else ""),
        "epoch": f"{of}; {steps:,} steps of {run.global_batch:,} views",
        "run": f"{total:,} steps, {seen:,} views, {seen / repeats / images:,.1f} passes over the images",
        f"{GPUS} GPUs": _share(run.global_batch, run.passes),
        "patches": _patches(model),
        "evaluation": f"shorter side to {int(model.image_size / recipe.data.eval_crop_ratio)} px, "
        f"centre crop {model.image_size} px",
        "stochastic depth": _drop_rates(model),
    }
    if line := describe_rate(recipe, given):
        facts["batch"] = line
    if recipe.data.block:
        facts["order"] = _describe_blocks(recipe.data)
    if not steps:
        return {**facts, "run": f"none: expected run.global_batch={run.global_batch} to be at most {views}, an epoch"}
    last = learning_rate(recipe.schedule, recipe.optim.lr, total - 1, steps)
    cells = [f"{epoch:>4} {rate:8.2e}" for epoch, rate in _rates(recipe, steps)] + [f"last {last:8.2e}"]
    table = ["    ".join(cells[row : row + _CELLS]) for row in range(0, len(cells), _CELLS)]
    facts["learning rate"] = "\n".join(["at the start of epoch", *table])
    if (decay := recipe.optim.layer_decay) is not None:
        layers = find_architecture(model.name).depth + 1  # the blocks and the embeddings
        facts["layer decay"] = f"the rate above is the head's; the embeddings get {decay**layers:.3g} of it"
    return facts


def _rates(recipe: Recipe, steps: int) -> list[tuple[int, float]]:
    """Learning rates at the start of each warmup epoch, and at later steps at which they have changed noticeably."""
    shown: list[tuple[int, float]] = []
    schedule = recipe.schedule
    for epoch in _milestones(schedule):
        rate = learning_rate(schedule, recipe.optim.lr, epoch * steps, steps)
        if epoch <= schedule.warmup_epochs + 1 or not math.isclose(rate, shown[-1][1], rel_tol=0.01):
            shown.append((epoch, rate))
    return shown


def _milestones(schedule: Schedule) -> list[int]:
    warmup = math.ceil(schedule.warmup_epochs)
    first = range(0, warmup + 2, max(1, warmup // 5))
    parts = (math.floor(schedule.epochs * percent / 100) for percent in (*range(10, 100, 10), 95, 99))
    return sorted({0, *(epoch for epoch in (*first, *parts) if epoch < schedule.epochs)})


def _share(global_batch: int, accumulation: int) -> str:
    views, rest = divmod(global_batch, GPUS * accumulation)
    if rest:
        return f"{global_batch:,} views cannot be divided over {GPUS} GPUs and run.accumulation={accumulation}"
    return f"{views:,} views on each" + (f", in {accumulation} passes a step" if accumulation > 1 else "")


def _describe_blocks(data: Data) -> str:
    lanes = f" in each of {data.lanes} lanes" if data.lanes > 1 else ""
    return (
        f"{data.block} shards shuffled together{lanes}; of S shards two images of a batch share one in the next epoch "
        f"too 1 + S / {(data.block * data.lanes) ** 2:,} times as often as after a full shuffle"
    )


def _patches(model: Model) -> str:
    size = find_architecture(model.name).patch_size
    side = model.image_size // size
    used = side * size
    border = "" if used == model.image_size else f": {used} px of {model.image_size}, the rest is not seen"
    return f"{side} x {side} of {size} px{border}"


def _drop_rates(model: Model) -> str:
    depth = find_architecture(model.name).depth
    if not model.drop_path or not model.train_mode:
        return "none" + ("" if model.train_mode else ", with model.train_mode=false")
    if model.drop_path_decay == "constant":
        return f"{model.drop_path:g} in each of {depth} blocks"
    rates = (model.drop_path * block / (depth - 1) for block in range(depth))
    return f"{', '.join(f'{rate:.3g}' for rate in rates)} in {depth} blocks"


def _wrap(text: str, first: str, rest: str | None = None) -> list[str]:
    """`text` in lines of WIDTH: `first` precedes the first line, and `rest`, or as many blanks, the others."""
    bound = re.sub(r"(--[\w-]+) (?=[^-])", r"\1\0", text)  # keeps a flag and its value on one line
    wrapped = textwrap.wrap(
        bound, WIDTH, initial_indent=first, subsequent_indent=" " * len(first) if rest is None else rest,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace("\0", " ") for line in wrapped] or [first.rstrip()]
