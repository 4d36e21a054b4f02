"""The model table: parameters, GFLOPs, images per second, memory and MFU of every zoo entry."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from deit_fast.models.cost import count_parameters, forward_macs, training_flops
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import RecipeError, is_out_of_memory, one_line

from .engine import LR, default_batch
from .measure import (
    Row,
    Session,
    free_memory,
    interleave,
    peak_memory_mb,
    rate,
    reset_peak_memory,
)
from .workload import (
    TINY,
    ZOO,
    add_fitting_row,
    build_step,
    find_recipe,
    in_turn,
    synthetic_batches,
)

Mode = Literal["inference", "train"]
LARGEST = {"cuda": 4096, "cpu": 64}
WORTH = 1.02  # gain that a doubled batch needs for the search to continue


def run(session: Session, mode: Mode, models: list[str] | None, batch: int | Literal["auto"] | None) -> None:
    """One row per model. By default the whole zoo, as far as the time allows: models without a figure first."""
    if not models:
        quick = session.quick and session.device.type == "cpu"
        models = [TINY] if quick else least_recent_first(ZOO, session.path.parent, session.device, mode, batch)
    session.settings = {"mode": mode, "batch": batch or "default"}
    ceiling = session.measure_ceiling()
    for word in models:
        if session.out_of_time(word):
            continue
        if not _fits(word, mode, session.device):
            session.skip(word, "its weights and optimizer do not fit in memory")
            continue
        try:
            size = find_batch(session, mode, word) if batch == "auto" else batch
            add_fitting_row(
                session,
                word,
                size or default_batch(word, session.device, session.quick),
                lambda word, size: _measure(session, mode, word, size, ceiling, fixed=batch != "auto"),
            )
        except RecipeError:
            raise
        except Exception as error:  # a model that fails here must not stop the others
            session.skip(word, f"{type(error).__name__}: {one_line(error)[:200]}")


def least_recent_first(
    models: list[str], folder: Path, device: torch.device, mode: Mode, batch: int | str | None
) -> list[str]:
    """The models in order, but those with a figure in the JSONs of `folder` last, the oldest figure first.

    Compiling the whole zoo takes longer than one call may, so each call continues where the last one ended.
    """
    dates: dict[str, str] = {}
    chosen = "best" if batch == "auto" else "fixed"
    for path in folder.glob("throughput-*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["device"] == device.type and not content["quick"]:
            for row in content["rows"]:
                if (row["mode"], row["batch_chosen"]) == (mode, chosen):
                    dates[row["model"]] = max(content["date"], dates.get(row["model"], ""))
    return sorted(models, key=lambda name: dates.get(name, ""))


def next_path(path: Path) -> Path:
    """NAME-2.json, NAME-3.json, ...: the first that does not exist."""
    candidates = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(each for each in candidates if not each.exists())


def _free_bytes(device: torch.device) -> int:
    """Free memory, bytes: of the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def _fits(word: str, mode: Mode, device: torch.device) -> bool:
    """Whether weights, and in training gradients, two moments and average, need less than the free memory.

    On a CPU, running out of memory would end the process; on a GPU, finding it out would take minutes.
    """
    per_parameter = 20 if mode == "train" else 4
    return per_parameter * count_parameters(find_recipe(word, 2).model) < 0.9 * _free_bytes(device)


def find_batch(session: Session, mode: Mode, word: str) -> int:
    """The batch after which doubling no longer pays, or no longer fits.

    The search does not use torch.compile, which would take a minute for every size.
    """
    best, fastest, size = 0, 0.0, 8 if session.device.type == "cuda" else 2
    largest = 8 if session.quick else LARGEST[session.device.type]
    while size <= largest:
        try:
            recipe = find_recipe(word, size, _words(mode, "run.compile=off"))
            call = build_call(recipe, mode, session.device)
            timed, errors = interleave(
                {word: call}, session.device, _silent, repeats=2, warmup=2, seconds=0.1 if session.quick else 0.5
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        finally:
            call = _nothing
            free_memory()
        if errors:
            break
        speed = size / timed[word].seconds["median"]
        session.say(f"{word}: batch {size}: {speed:.1f} images/s")
        if best and speed < WORTH * fastest:
            break
        best, fastest, size = size, speed, 2 * size
    return best


def build_call(recipe: Recipe, mode: Mode, device: torch.device) -> Callable[[], Any]:
    """One training step, or one evaluated batch, on alternating batches."""
    batches = synthetic_batches(recipe, device)
    step = build_step(recipe, device)
    if mode == "train":
        return in_turn(lambda each: step([each], LR), batches)
    predict = step.predictor(step.state.model.eval())

    @torch.no_grad()
    def infer(images: torch.Tensor) -> torch.Tensor:
        return predict(images)

    return in_turn(lambda each: infer(each.images), batches)


def _measure(session: Session, mode: Mode, word: str, batch: int, ceiling: float, fixed: bool) -> Row:
    device = session.device
    recipe = find_recipe(word, batch, _words(mode))
    section = recipe.model
    session.say(f"{section.name} at {section.image_size} px, batch {batch}, {mode}")
    free_memory()
    reset_peak_memory(device)
    call = build_call(recipe, mode, device)
    timed, errors = interleave(
        {word: call},
        device,
        session.say,
        repeats=session.repeats,
        warmup=20 if device.type == "cuda" else 1,
        seconds=session.seconds(0.3, 1.0),
        known=lambda _, timing: session.note(f"{word} {mode}", batch / timing.seconds["median"], "images/s"),
    )
    if errors:
        raise RuntimeError(errors[word])
    images = rate(batch, timed[word].seconds)
    macs = forward_macs(section)
    flops = training_flops(section, batch) if mode == "train" else 2 * macs
    return {
        "model": section.name,
        "params_m": count_parameters(section) / 1e6,
        "gmacs": macs / 1e9,
        "images_per_second": images,
        "peak_memory_mb": peak_memory_mb(device),
        "resolution": section.image_size,
        "mode": mode,
        "batch": batch,
        "batch_chosen": "fixed" if fixed else "best",
        "executed_gflops_per_image": flops / 1e9,
        "mfu": flops * images["median"] / ceiling,
    }


def _words(mode: Mode, *words: str) -> list[str]:
    """Words for inference, which needs no moving average."""
    return [*words, *(["optim.ema_decay=null"] if mode == "inference" else [])]


def _silent(_: str) -> None:
    pass


def _nothing() -> None:
    pass
