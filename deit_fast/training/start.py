"""The start of a run: from a checkpoint, from given weights or from its seed; and the loader from that step on."""

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch

from deit_fast.checkpoint.earlier import check_own, find_run, finish_setting_aside, set_aside
from deit_fast.checkpoint.format import SEAL, check_same_recipe, load_checkpoint, restore_link
from deit_fast.checkpoint.resume import agree_on_checkpoint, find_checkpoints, step_of
from deit_fast.checkpoint.save import step_path
from deit_fast.checkpoint.state import TrainState
from deit_fast.checkpoint.store import RunStore, pull_everywhere
from deit_fast.convert.detect import Weights
from deit_fast.convert.fit import build_initialised, far_resolution, format_changes
from deit_fast.convert.own_format import ADVICE
from deit_fast.convert.pretrained import describe_origin, name_origin, open_weights
from deit_fast.data.loader.batches import TrainLoader
from deit_fast.data.sources.memory_cache import keep_in_memory
from deit_fast.data.sources.splits import Split
from deit_fast.recipe.schema import parse_recipe
from deit_fast.runtime.errors import RecipeError, RunError, one_line
from deit_fast.runtime.files import locked, write_json
from deit_fast.runtime.hardware import cpu_threads
from deit_fast.runtime.object_store import is_remote
from deit_fast.runtime.patience import patience
from deit_fast.runtime.world import World
from deit_fast.training.backend import settle_backend
from deit_fast.training.job import Job
from deit_fast.training.passes import Kept
from deit_fast.training.same_data import check_same_data, forget_what_changed


def claim_folder(
    out: str | Path, resume: str, world: World, stack: ExitStack
) -> tuple[Path, RunStore | None, list[str]]:
    """The run's folder, which the main process locks until `stack` ends; its store; and lines for the user.

    `out` is a path, or the URI of a store. All processes call this together. Raises RunError, in every process, where
    another training uses the folder, or where the folder holds something else than a run.
    """
    remote, uri, earlier, lines, error = is_remote(out), str(out).rstrip("/"), "", list[str](), None
    if world.is_main:
        try:
            if remote:
                uri, earlier = find_run(uri, resume)
            else:
                check_own(Path(out), over=resume == "never")
            folder = RunStore(uri).folder if remote else Path(out)
            stack.enter_context(locked(folder, ".lock", "another training"))
            lines = _say_aside(folder, finish_setting_aside(folder))
        except RunError as reason:
            error = reason
    uri, earlier, error = world.broadcast((uri, earlier, error))
    if error is not None:
        raise error
    if earlier:
        lines.append(f"{earlier}: the earlier run stays there; this one is kept in {uri}")
    store = RunStore(uri) if remote else None
    return store.folder if store is not None else Path(out), store, lines


class Found(NamedTuple):
    """The checkpoint from which a run resumes, the same in every process."""

    path: Path | None
    """None for a new run."""
    kept: Kept | None
    """The number of passes of its steps."""
    lines: list[str]
    """Lines for the user about what was downloaded or skipped."""


def find_start(out: Path, store: RunStore | None, resume: str, world: World) -> Found:
    """Finds the checkpoint that `restore` loads. All processes call this together. The first rule that applies:

    1. resume is a path: that checkpoint;
    2. resume is "auto": the newest whole checkpoint in out/checkpoints.

    Raises RunError where no checkpoint is whole.
    """
    lines = pull_everywhere(store, world) if store is not None else []
    path, damaged = agree_on_checkpoint(out / "checkpoints", resume, world)
    if path is None:
        return Found(None, None, lines)
    saved = load_checkpoint(path, torch.device("cpu"))  # mapped: only the parts that are used are read
    passes = saved["recipe"].get("run", {}).get("accumulation")
    kept = Kept(passes, saved.get("processes")) if isinstance(passes, int) else None
    return Found(path, kept, [*lines, *damaged])


def restore(
    job: Job, state: TrainState, found: Found, init: str | Path | None, resume: str, from_random: bool = False
) -> list[str]:
    """Loads a run's starting point into a state of step 0; returns lines about it. All processes call this together.

    The first rule that applies:

    1. `found` is a checkpoint, which has to be of the same recipe;
    2. init, if given: these weights, by path, URI or name, with position embeddings and head adapted to this recipe;
    3. the initial weights drawn from the seed, which the state has; with run.start="weights" only if `from_random`.

    Only the main process writes. Raises RecipeError for a checkpoint of another recipe, and for finetuning without
    weights; DataError for a checkpoint that was trained with other data.
    """
    world, folder, path = job.world, job.out / "checkpoints", found.path
    if path is not None:
        notes = [*found.lines, *_load(job, state, path), *_other_init(state, init)]
    elif init is not None:
        notes = _initialise_from(job, state, init)
    elif job.recipe.run.start == "weights" and not from_random:
        raise RecipeError(
            f"run.start='weights': expected --init with the weights that {job.recipe.name} finetunes, found none and "
            f"no checkpoint in {folder}; --init none trains from random weights all the same"
        )
    else:
        notes = []
    notes += settle_backend(job.recipe, state, world, resumed=path is not None)
    world.barrier()  # before anything is moved that other processes read
    if resume != "auto":
        notes += _make_room(job, state, path)
    if world.is_main:
        write_json(job.out / "recipe.json", job.asked.model_dump(mode="json"))
        here = step_path(folder, state.step)
        if path is not None and here.with_suffix(SEAL).exists():  # a crash may have come before its link was made
            restore_link(here, folder / "last.pt")
    world.barrier()
    return notes


def _make_room(job: Job, state: TrainState, path: Path | None) -> list[str]:
    """Moves aside the files that the run would overwrite: an earlier run, or one that continued past `path`.

    In the second case, metrics up to the checkpoint at `path` are kept. The checkpoint itself becomes the run's first
    one, wherever it is from, because the run may have no step left after which to write another. Raises RunError, in
    every process.
    """
    out, folder, lines, error = job.out, job.out / "checkpoints", list[str](), None
    if job.world.is_main:
        try:
            is_own = path is not None and path.parent.resolve() == folder.resolve()
            beyond = is_own and any(step_of(found) > state.step for found in find_checkpoints(folder))
            moved = set_aside(out) if job.store is None and (not is_own or beyond) else None
            lines = _say_aside(out, moved)
            if path is not None:
                if moved is not None and not path.exists():
                    path = moved / os.path.relpath(path.resolve(), out.resolve())
                restore_link(path, step_path(folder, state.step))
            if is_own and moved is not None and (moved / "metrics.jsonl").exists():
                shutil.copyfile(moved / "metrics.jsonl", out / "metrics.jsonl")
            if job.store is not None:
                job.store.begin(job.asked.model_dump(mode="json"))
        except RunError as reason:
            error = reason
    if error := job.world.broadcast(error):
        raise error
    return lines


def _say_aside(folder: Path, moved: Path | None) -> list[str]:
    return [] if moved is None else [f"{folder}: the earlier run is in {moved} now, whole"]


def _load(job: Job, state: TrainState, path: Path) -> list[str]:
    # Sharded tensors stay in the file, except for this process's rows.
    saved = load_checkpoint(path, job.world.device if state.shards is None else torch.device("cpu"))
    check_same_recipe(job.recipe, parse_recipe(saved["recipe"], source=str(path)), path)
    uris: dict[Split, str] = {"train": job.source.uri, "val": job.val_source.uri if job.val_source is not None else ""}
    changes = check_same_data(job.identities, saved, uris, job.recipe.data.may_change, path)
    try:
        state.load_state_dict(saved)
    except torch.OutOfMemoryError:
        raise
    except (KeyError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {one_line(error)[:120]}"
        raise RunError(f"{path}: its state is not of this version's layout ({reason}); {ADVICE}") from None
    forget_what_changed(state, job.identities, saved)
    notes = [f"resumed from {path} at step {state.step} of {job.total_steps}", *changes]
    before, now = saved["recipe"].get("run", {}).get("accumulation"), job.recipe.run.passes
    if before != now:
        notes.append(
            f"run.accumulation={now}: the run had {before} before; sums are rounded otherwise from here on, and "
            "stochastic depth draws for batches of another size"
        )
    if saved["dtype"] != str(job.dtype):
        notes.append(f"computed in {saved['dtype']} before, in {job.dtype} from here on")
    threads = torch.get_num_threads()
    if job.world.device.type == "cpu" and saved.get("threads", threads) != threads:
        notes.append(
            f"computed with {saved['threads']} threads before (OMP_NUM_THREADS), with {threads} from here on: sums are "
            "rounded otherwise"
        )
    return notes


def _other_init(state: TrainState, init: str | Path | None) -> list[str]:
    """A line if a resumed run is given other weights than it began with, as far as its checkpoint knows these."""
    began, given = state.init and name_origin(state.init["weights"]), init and name_origin(init)
    if not began or not given or began == given or os.path.realpath(began) == os.path.realpath(given):
        return []
    return [f"--init {given}: not read, since the run began with {began}"]


def _initialise_from(job: Job, state: TrainState, init: str | Path) -> list[str]:
    weights = _open_everywhere(init, job.world)
    if job.world.is_main:
        state.init = describe_origin(init, weights)
    model, changes = build_initialised(job.recipe.model, weights, job.recipe.run.seed_of("init"))
    state.load_weights(model.state_dict(), model.state_dict())
    said = [f"weights of {weights.source} loaded", *far_resolution(job.recipe.model, weights)]
    return [*(f"{init}: {line}" for line in said), *weights.say(), *_other_pixels(job, weights, init),
            *format_changes(changes)]  # fmt: skip


def _open_everywhere(init: str | Path, world: World) -> Weights:
    """The weights, in every process. An error in one process, such as a missing network, ends all of them."""
    weights: Weights | None = None
    error: Exception | None = None
    try:
        weights = open_weights(init)
    except (RecipeError, RunError) as reason:
        error = reason
    if error := next(filter(None, world.gather(error)), None):
        raise error
    assert weights is not None
    return weights


def _other_pixels(job: Job, weights: Weights, init: str | Path) -> list[str]:
    """Lines if the weights were trained with another normalisation of pixels; the recipe's normalisation is used."""
    theirs, mine = weights.recipe.data, job.recipe.data
    pairs = [(key, getattr(theirs, key), getattr(mine, key)) for key in ("mean", "std")]
    return [
        f"{init}: trained with data.{key}={json.dumps(found)}, this run has {json.dumps(now)}"
        for key, found, now in pairs
        if found != now
    ]


def build_loader(job: Job, start: int, backend: str = "auto") -> TrainLoader:
    """The batches from step `start` to the last; `backend` makes their pixels."""
    recipe, run = job.recipe, job.recipe.run
    return TrainLoader(
        keep_in_memory(job.source, run.cache_gib), recipe.augment, recipe.model.image_size, job.samplers, run.seed,
        job.world.device, cpu_threads(), start_step=start, stop_step=job.total_steps,
        decode_once=recipe.data.decode_once, hw_decoder_load=run.hw_decoder_load, patience=patience(run.hang_timeout),
        backend=backend,
    )  # fmt: skip
