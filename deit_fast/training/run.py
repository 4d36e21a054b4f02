"""A training run: recipe, data and folder in; weights, metrics and a result out. Run again, it goes on by itself."""

import contextlib
from pathlib import Path
from typing import Any

from deit_fast.checkpoint.store import RunStore, fetch_sealed
from deit_fast.data.sources.classes import check_same_classes, resolve_classes
from deit_fast.data.sources.open import find_validation, open_source
from deit_fast.data.sources.salvage import SalvagedShards
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import StoppedError
from deit_fast.runtime.files import locked
from deit_fast.runtime.object_store import fetch_file, is_remote
from deit_fast.runtime.stopping import StopSignal
from deit_fast.runtime.world import join_world, leave_world
from deit_fast.training.distill import load_teacher
from deit_fast.training.loop import Trainer


def train(
    recipe: Recipe,
    data: str,
    out: str | Path,
    val: str | None = None,
    init: str | Path | None = None,
    resume: str = "auto",
    teacher: str | Path | None = None,
) -> dict[str, Any]:
    """Trains `recipe` on `data` into the folder `out`, evaluating on `val` or the validation split beside `data`.

    Where it starts, the first that applies:
    1. resume is a path: that checkpoint, of the same recipe;
    2. resume is "auto": the newest whole checkpoint in out/checkpoints; a finished run returns its result at once;
    3. init is a path: that file's weights, position embeddings and head adapted to this recipe;
    4. the seed's own initialisation.
    teacher is the file of the teacher's weights, which no checkpoint holds: a run with distillation needs it each time.
    Any of them may be in an object store (s3://, gs://, file://). For `out` the run works in a copy below the cache
    folder, and each checkpoint goes up once it is written.
    Returns what result.json holds. SIGTERM or SIGUSR1 end it after a checkpoint, with StoppedError. Raises RecipeError,
    DataError or RunError, each of one line.
    """
    recipe.check_teacher(teacher)
    store = RunStore(str(out)) if is_remote(out) else None
    out = store.folder if store is not None else Path(out)
    init, teacher = fetch_file(init) if init else None, fetch_file(teacher) if teacher else None
    resume = str(fetch_sealed(resume)) if is_remote(resume) else resume
    source = open_source(data, "train", recipe.data.category, SalvagedShards)
    recipe = resolve_classes(recipe, source)
    val_uri = val or find_validation(data)
    val_source = open_source(val_uri, "val", recipe.data.category) if val_uri else None
    if val_source is not None:
        check_same_classes(val_source, source.classes, f"{data}'s classes")
    world = join_world(recipe.run.hang_timeout)
    with locked(out, ".lock", "another training") if world.is_main else contextlib.nullcontext(), StopSignal() as stop:
        loaded = load_teacher(recipe, teacher, world.device) if teacher else None
        trainer = Trainer(recipe, source, val_source, out, world, loaded, store)
        trainer.start(init, resume)
        trainer.notes += source.describe() if isinstance(source, SalvagedShards) else []
        with trainer.watchdog:
            result = trainer.fit(stop)
    leave_world()
    if result is None:
        raise StoppedError(f"{out}: stopped by a signal at step {trainer.state.step}; run again to go on")
    return result
