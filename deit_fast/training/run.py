"""A training run: takes a recipe, data and a folder; writes weights, metrics and a result. A second call resumes."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deit_fast.checkpoint.state import TrainState
from deit_fast.checkpoint.store import fetch_sealed
from deit_fast.convert.pretrained import fetch_weights, name_origin
from deit_fast.data.sources.class_gaps import describe_gaps
from deit_fast.data.sources.classes import match_classes, resolve_classes
from deit_fast.data.sources.image_list import is_list
from deit_fast.data.sources.open import find_validation, open_source
from deit_fast.data.sources.salvage import SalvagedShards
from deit_fast.recipe.parse import read_val_fraction
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import describe_rate, get_recipe
from deit_fast.runtime.console import Console, Pace
from deit_fast.runtime.errors import DataError, RecipeError, RunError, StoppedError, StorageError
from deit_fast.runtime.files import write_json
from deit_fast.runtime.hardware import peak_memory
from deit_fast.runtime.log_sinks import chosen_sinks
from deit_fast.runtime.metrics_log import MetricsLog, told
from deit_fast.runtime.object_store import absolute_place, is_remote
from deit_fast.runtime.provenance import STARTS, note_start
from deit_fast.runtime.stopping import StopSignal
from deit_fast.runtime.waiting import share_cores
from deit_fast.runtime.watchdog import START_SECONDS, Watchdog
from deit_fast.runtime.world import join_world, leave_world
from deit_fast.training.banner import describe_start
from deit_fast.training.distill import load_teacher
from deit_fast.training.fit_batch import fit_batch
from deit_fast.training.held_out import hold_out, list_of_run, read_list
from deit_fast.training.job import Job, plan_job
from deit_fast.training.loop import evaluations_left, run_loop
from deit_fast.training.out_of_memory import MemoryGuard
from deit_fast.training.passes import settle_passes
from deit_fast.training.periodic import draw_curves
from deit_fast.training.prepare import initial_state
from deit_fast.training.start import claim_folder, find_start, restore
from deit_fast.zoo import check_given

NO_VALIDATION = "no validation images: --val 0.1 holds a tenth of each class out, --val PATH names some"
FROM_RANDOM = "none"
"""The value of --init for a run without given weights, although its recipe is for finetuning."""


def train(
    recipe: Recipe | str | Path,
    data: str | Path,
    out: str | Path,
    val: str | Path | float | None = None,
    init: str | Path | None = None,
    resume: str = "auto",
    teacher: str | Path | None = None,
    labels: str | Path | None = None,
    overrides: Iterable[str] = (),
) -> dict[str, Any]:
    """Trains `recipe` on `data` into the folder `out`, evaluating on `val` or the validation split beside `data`.

    recipe: a Recipe, the name of one in the recipe table, or a .toml or .json file. overrides: section.key=value words
    that change it. Example: `train("demo_pretrain", "digits", "runs/digits", overrides=["optim.lr=1e-3"])`.

    val: validation data; or a fraction of each class, such as 0.1, that is held out of training and listed in
    out/val.json, which data.val_fraction does by default for data without a validation split; or 0 for no evaluation.
    The list of another run holds the same images out. labels: the file of labels for validation images without class
    folders, if it is not beside them; without validation images, for the training images. teacher: the file of the
    teacher's weights. No checkpoint holds these, so each start of a run with distillation needs the file.

    The run starts from the first of these that applies:

    1. resume is a path: that checkpoint, of the same recipe;
    2. resume is "auto": the newest whole checkpoint in out/checkpoints; a finished run returns its result at once;
    3. init is a path, a URI or a name of published weights: these weights, or those in a model's or a run's folder,
       fitted to this recipe. They are downloaded only in this case, so a resumed run needs no network for them;
    4. the initial weights drawn from the seed. A recipe with run.start="weights" is refused then unless init is "none".

    With resume "never" the run starts over. An earlier run in `out` is moved to out/earlier-1 and so on. In an object
    store the new run is kept below out/later-1 and so on instead, and the same `out` finds it from then on. Any
    checkpoint may be in an object store (s3://, gs://, file://). If `out` is in one, the run works in a copy below the
    cache folder and uploads each checkpoint once it is written.

    Returns the content of result.json: accuracies in percent, minutes, images per second, peak memory in GiB. SIGTERM
    or SIGUSR1 ends the run after a checkpoint, with StoppedError; SIGINT does the same with KeyboardInterrupt. Raises
    RecipeError, DataError or RunError, each of one line. LacksMemoryError, a RunError, names a value of
    run.accumulation with which the same call continues.
    """
    name = None if isinstance(recipe, Recipe) else str(recipe)
    recipe = recipe.override(overrides) if isinstance(recipe, Recipe) else get_recipe(str(recipe), overrides)
    recipe.check_teacher(teacher)
    rate = describe_rate(recipe, name)
    fraction = read_val_fraction(val) if val is not None else None
    listed = str(val) if fraction is None and val and is_list(str(val)) else None
    if fraction is not None:
        recipe = recipe.derive(data={"val_fraction": fraction})
    elif listed is not None:
        recipe = recipe.derive(data=read_list(listed).choice)
    data, from_random = str(data), init == FROM_RANDOM
    sinks = chosen_sinks(recipe.run.trackers)
    init = None if from_random else init or None
    if init is not None:
        check_given(init)
        if not may_go_on(out, resume):
            fetch_weights(init)  # fails now for weights that cannot be fetched, before the data are listed
    places = {
        "data": absolute_place(data),
        "val": str(val) if fraction is not None else val and absolute_place(str(val)),
        "labels": labels and absolute_place(labels),
        "teacher": teacher and name_origin(teacher),
        "init": init and name_origin(init),  # without a signature
    }
    teacher = fetch_weights(teacher, any_model=True) if teacher else None
    resume = str(fetch_sealed(resume)) if is_remote(resume) else resume
    val_uri = None if fraction is not None or listed else str(val) if val else find_validation(data)
    train_labels = labels if val_uri is None else None
    source = open_source(data, "train", recipe.data.category, SalvagedShards, train_labels)
    recipe = resolve_classes(recipe, source)
    val_source = open_source(val_uri, "val", recipe.data.category, labels=labels) if val_uri else None
    if val_source is not None:
        match_classes(val_source, source.classes, f"{data}'s classes")
    world = join_world(recipe.run.hang_timeout, recipe.run.device)
    with ExitStack() as stack:
        stack.enter_context(share_cores(world.device))
        folder, store, notes = claim_folder(out, resume, world, stack)
        notes += [*([rate] if rate else []), *describe_gaps(source)]
        stop = stack.enter_context(StopSignal())
        held, salvaged = None, source.describe() if isinstance(source, SalvagedShards) else []
        if val_source is None and recipe.data.val_fraction:
            earlier = listed or list_of_run(folder, store, resume)
            held, lines = hold_out(recipe.data, source, labels, earlier, world, required=listed is not None)
            source, val_source = held.train, held.val
        else:
            lines = [f"validation images: {val_source.place}"] if val_source is not None else [NO_VALIDATION]
        recipe, fitted = fit_batch(recipe, len(source), world.size)
        guard = stack.enter_context(MemoryGuard(recipe, world))
        found = find_start(folder, store, resume, world)
        loaded = load_teacher(recipe, teacher, world.device) if teacher else None
        settled = settle_passes(recipe, world, found.kept, loaded)
        asked, guard.recipe, recipe = recipe, settled.recipe, settled.recipe
        job = plan_job(recipe, source, val_source, folder, world, store, asked)
        state = initial_state(recipe, world)
        notes += restore(job, state, found, init, resume, from_random)
        guard.state = state
        notes += [*lines, *salvaged, *fitted]
        if held is not None and world.is_main:
            held.write(folder)
        if world.is_main:
            with told(STARTS):
                note_start(folder, world.size, world.device, state.step, places)
        with Watchdog(folder, world.rank, recipe.run.hang_timeout) as watchdog, told_as_interrupt(stop):
            result = find_result(job, state)
            if result is None:
                pace = Pace(job.total_steps, lambda step: evaluations_left(job, step))
                best = state.best_top1 if state.scores else None
                top5 = recipe.model.classes > 5
                console = Console(job.total_steps, recipe.schedule.epochs, state.step, pace, best, top5)
                with MetricsLog(folder, state.step, sinks, console, speaks=world.is_main) as log:
                    log.say(*describe_start(job, state, settled.reason), *notes)
                    finished = run_loop(job, state, loaded, log, watchdog, stop)
                if finished:
                    watchdog.beat("the result", START_SECONDS)
                    result = write_result(job, state)
        interrupted = result is None and world.any(stop.interrupted)
    leave_world(world)
    if result is None:
        done = f"at step {state.step} of {job.total_steps}; run the same command again to go on"
        if interrupted:
            raise KeyboardInterrupt(f"{out}: interrupted, with a checkpoint, {done}")
        raise StoppedError(f"{out}: stopped by a signal {done}")
    return result


def may_go_on(out: str | Path, resume: str) -> bool:
    """Whether there may be a checkpoint to resume from, so that the weights of --init may not be needed."""
    if resume == "auto":
        return is_remote(out) or any(Path(out, "checkpoints").glob("*"))
    return resume != "never"


@contextlib.contextmanager
def told_as_interrupt(stop: StopSignal) -> Iterator[None]:
    """Turns a collective's error in an interrupted run into KeyboardInterrupt: another process left first."""
    try:
        yield
    except (RecipeError, DataError, RunError, OSError):
        raise
    except Exception as error:
        if stop.interrupted:
            raise KeyboardInterrupt from error
        raise


def find_result(job: Job, state: TrainState) -> dict[str, Any] | None:
    """The result of a finished run; None for a run with steps left, whose result.json is removed."""
    path, found = job.out / "result.json", None
    if job.world.is_main and state.step >= job.total_steps:
        with contextlib.suppress(OSError, ValueError):  # a missing or damaged one is written again
            found = json.loads(path.read_text(encoding="utf-8"))
    earlier: dict[str, Any] | None = job.world.broadcast(found)
    if job.world.is_main and earlier is not None:
        print(f"{job.out}: finished already, {job.total_steps} steps", flush=True)
    elif job.world.is_main:
        path.unlink(missing_ok=True)
    return earlier


def write_result(job: Job, state: TrainState) -> dict[str, Any]:
    """Writes result.json and curves.png of a run that has trained all steps, here and in its object store.

    Returns the content of result.json. Raises RunError, in every process, where the store was out of reach.
    """
    recipe, out, world, store = job.recipe, job.out, job.world, job.store
    result = {
        "recipe": recipe.name,
        "image_size": recipe.model.image_size,
        "step": state.step,
        **state.scores,
        "val_images": len(job.val_source) if job.val_source is not None else None,
        "best_top1": state.best_top1 if state.scores else None,
        "images_per_second": state.steps_per_second * recipe.run.global_batch,
        "minutes": state.seconds / 60,
        "peak_memory_gib": peak_memory(world.device),
        "skipped": state.skipped,
        "bad_images": len(state.bad_images),
        "init": state.init,
        "checkpoint": f"{absolute_place(out) if store is None else store.uri}/checkpoints/last.pt",
    }
    failure = ""
    if world.is_main:
        write_json(out / "result.json", result)
        draw_curves(job)  # its page shows the result
        try:
            if store is not None:
                store.push()
        except RunError as error:
            failure = f"the result is in {out} only: {error}"
    if failure := world.broadcast(failure):
        raise StorageError(failure)
    return result
