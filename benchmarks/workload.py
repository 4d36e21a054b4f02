"""The workloads that are timed: recipes of the zoo's entries, their FLOPs, and synthetic batches like the loop's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import counters

from deit_fast.data.loader.batches import Batch
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import RECIPES
from deit_fast.runtime.errors import is_out_of_memory
from deit_fast.runtime.world import World
from deit_fast.training.objective import BatchBuilder, MicroBatch
from deit_fast.training.prepare import check_machine, initial_state, prepare
from deit_fast.training.step import TrainStep
from deit_fast.zoo import ARCHITECTURES, PUBLISHED, find_family, resolve_name

from .measure import Row, Session, free_memory

# All entries but the demo's: first those published for DeiT III and DeiT, then the other families, then sizes without
# weights. If time is short, the last ones are left for another run.
_WITH_WEIGHTS = {row.name for row in PUBLISHED if row.weights} | {"deit3_tiny_patch16"}
ZOO = sorted(
    (name for name in ARCHITECTURES if "nano" not in name),
    key=lambda name: (name not in _WITH_WEIGHTS, not find_family(name).is_vit),
)
TINY = "deit3_nano_patch8@32"  # the model of --quick on CPUs
BATCHES = 4  # different inputs in turn, so that no input stays in a cache


def parse_model(word: str) -> tuple[str, int]:
    """`deit3_base_patch16@192` -> entry and resolution; by default the resolution in the name, or 224.

    Raises RecipeError for an unknown entry.
    """
    name, _, size = word.partition("@")
    entry, resolution = resolve_name(name)
    return entry, int(size or resolution)


def find_recipe(word: str, batch: int, words: list[str] | None = None) -> Recipe:
    """The published pretraining of a zoo entry at a resolution and batch.

    Stochastic depth is that of the recipe for this resolution, if there is one. Entries without a recipe use ViT-S's.
    The whole batch shares one draw of mixup and CutMix, as one GPU's batch does in the reference.
    """
    name, size = parse_model(word)
    rows = [recipe for recipe in RECIPES.values() if recipe.model.name == name]
    pretraining = next((row for row in rows if row.optim.name == "lamb"), RECIPES["deit3_small_1k_224"])
    same_size = next((row for row in rows if row.model.image_size == size), pretraining)
    return pretraining.override(
        [
            f"model.name={name}",
            f"model.image_size={size}",
            f"model.drop_path={same_size.model.drop_path}",
            f"run.global_batch={batch}",
            f"mix.group={batch}",
            "mix.mixup=0.8",
            "mix.cutmix=1.0",
            *(words or []),
        ]
    )


def build_step(recipe: Recipe, device: torch.device) -> TrainStep:
    """The training step of a run with one process."""
    world = World(0, 1, device)
    dtype, before = check_machine(recipe.run, world), _graphs()
    step = prepare(recipe, initial_state(recipe, world), world, dtype)
    assert not step.compiled or _graphs() > before, "torch.compile made no graph of a step that says it is compiled"
    return step


def _graphs() -> int:
    """The number of functions that torch.compile has compiled in this process; those run eagerly do not count."""
    return int(counters["frames"]["ok"])


def synthetic_batches(recipe: Recipe, device: torch.device, count: int = BATCHES) -> list[MicroBatch]:
    """Random images and labels on the device, mixed with the draws of the first steps."""
    generator = torch.Generator().manual_seed(0)
    build_batch = BatchBuilder(recipe, device)
    size, batch = recipe.model.image_size, recipe.run.global_batch
    found = []
    for step in range(count):
        images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
        labels = torch.randint(recipe.model.classes, (batch,), generator=generator)
        positions = np.arange(batch)
        images = images.to(device).to(memory_format=torch.channels_last)
        drawn = Batch(images, labels.to(device), positions, positions, 0, step, batch)
        found.append(build_batch(drawn))
    return found


def in_turn(function: Callable[..., Any], items: list[Any]) -> Callable[[], Any]:
    """A function without arguments that passes the items in turn."""
    calls = 0

    def call() -> Any:
        nonlocal calls
        calls += 1
        return function(items[calls % len(items)])

    return call


def add_fitting_row(session: Session, word: str, batch: int, measure: Callable[[str, int], Row]) -> None:
    """Adds the row that `measure` returns for a model at `batch`, or at the first half of it that fits in memory.

    A model that does not fit at any batch is recorded as skipped. Each try starts without the graphs of earlier models:
    beyond torch's limit of graphs per function, the next model would run eagerly, which is an error here.
    """
    while batch >= 2:
        torch._dynamo.reset()
        try:
            with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
                session.add(measure(word, batch))
            break
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            session.say(f"{word}: no memory for a batch of {batch}")
            batch //= 2
        free_memory()
    else:
        session.skip(word, "no memory for a batch of 2")
    free_memory()
