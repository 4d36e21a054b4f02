"""Where a run starts: from a checkpoint, given weights or its seed; and the loader from that step on."""

import json
from pathlib import Path

import torch

from deit_fast.checkpoint.format import check_same_recipe, load_checkpoint, restore_link
from deit_fast.checkpoint.resume import agree_on_checkpoint
from deit_fast.checkpoint.save import step_path
from deit_fast.checkpoint.state import TrainState
from deit_fast.checkpoint.store import pull_everywhere
from deit_fast.convert.detect import Weights, load_weights
from deit_fast.convert.fit import build_initialised, format_changes
from deit_fast.data.loader.batches import TrainLoader
from deit_fast.data.loader.setting import choose_setting, decodes_regions
from deit_fast.data.loader.tuning import LoaderSetting
from deit_fast.data.sources.memory_cache import keep_in_memory
from deit_fast.recipe.schema import parse_recipe
from deit_fast.runtime.errors import RecipeError
from deit_fast.runtime.files import write_json
from deit_fast.training.job import Job


def restore(job: Job, state: TrainState, init: Path | None, resume: str, from_random: bool = False) -> list[str]:
    """Brings a state of step 0 to where the run starts, and returns lines that say so; all processes together.

    The first that applies:
    1. resume is a path: that checkpoint, of the same recipe;
    2. resume is "auto": the newest whole checkpoint in out/checkpoints;
    3. init is a path: that file's weights, position embeddings and head adapted to this recipe;
    4. the seed's own initialisation, which the state has; with run.start="weights" only if `from_random` asks for it.

    Only the main process writes. Raises RunError where no checkpoint is whole, RecipeError for one of another recipe,
    and for finetuning without weights.
    """
    world, folder = job.world, job.out / "checkpoints"
    lines = pull_everywhere(job.store, world) if job.store is not None and resume != "never" else []
    path, damaged = agree_on_checkpoint(folder, resume, world)
    if path is not None:
        notes = [*lines, *damaged, *_load(job, state, path)]
    elif init is not None:
        notes = _initialise_from(job, state, init)
    elif job.recipe.run.start == "weights" and not from_random:
        raise RecipeError(
            f"run.start='weights': expected --init with the weights that {job.recipe.name} finetunes, found none and "
            f"no checkpoint in {folder}; --init none trains from random weights all the same"
        )
    else:
        notes = []
    if job.val_source is None:
        notes.append("no validation data: pass --val to evaluate")
    if world.is_main:
        write_json(job.out / "recipe.json", job.recipe.model_dump(mode="json"))
        if path == step_path(folder, state.step):  # a crash came before its link, perhaps, at the last step
            restore_link(path, folder / "last.pt")
    world.barrier()
    return notes


def _load(job: Job, state: TrainState, path: Path) -> list[str]:
    # What is sharded stays in the file but for this process's rows.
    saved = load_checkpoint(path, job.world.device if state.shards is None else torch.device("cpu"))
    check_same_recipe(job.recipe, parse_recipe(saved["recipe"], source=str(path)), path)
    state.load_state_dict(saved)
    notes = [f"resumed from {path} at step {state.step} of {job.total_steps}"]
    if saved["dtype"] != str(job.dtype):
        notes.append(f"computed in {saved['dtype']} before, in {job.dtype} from here on")
    return notes


def _initialise_from(job: Job, state: TrainState, init: Path) -> list[str]:
    weights = load_weights(init)
    torch.manual_seed(job.recipe.run.seed_of("init"))  # for what the weights lack
    model, changes = build_initialised(job.recipe.model, weights)
    state.load_weights(model.state_dict(), model.state_dict())
    return [f"{init}: weights of {weights.source} loaded", *weights.say(), *_other_pixels(job, weights, init),
            *format_changes(changes)]  # fmt: skip


def _other_pixels(job: Job, weights: Weights, init: Path) -> list[str]:
    """Lines where the weights were trained on pixels that were normalised otherwise: the recipe's normalise them."""
    theirs, mine = weights.recipe.data, job.recipe.data
    pairs = [(key, getattr(theirs, key), getattr(mine, key)) for key in ("mean", "std")]
    return [
        f"{init}: trained with data.{key}={json.dumps(found)}, this run has {json.dumps(now)}"
        for key, found, now in pairs
        if found != now
    ]


def build_loader(job: Job, start: int) -> tuple[TrainLoader, list[str]]:
    """The batches from step `start` to the last, and lines on how they are read; all processes together.

    On GPUs the first loader on a machine is preceded by a search for its setting.
    """
    recipe, run, world, notes = job.recipe, job.recipe.run, job.world, list[str]()
    source = keep_in_memory(job.source, run.cache_gib)
    regions = run.roi_decode and decodes_regions(world)
    if run.roi_decode and not regions:
        notes.append("run.roi_decode: this machine fails the trial, or has no GPU; it stays off")

    def build(setting: LoaderSetting, first: int, stop: int) -> TrainLoader:
        return TrainLoader(
            source, recipe.augment, recipe.model.image_size, job.samplers, run.seed, world.device, setting.threads,
            start_step=first, stop_step=stop, decode_once=recipe.data.decode_once,
            hw_decoder_load=setting.hw_decoder_load, roi_decode=regions,
        )  # fmt: skip

    setting = choose_setting(run.hw_decoder_load, source, world, build)
    if world.device.type == "cuda":
        notes.append(f"loader: {setting.threads} threads, hw_decoder_load {setting.hw_decoder_load:g}")
    return build(setting, start, job.total_steps), notes
