"""The model table: parameters, GFLOPs, images per second, memory and MFU of every zoo entry."""

from collections.abc import Callable
from typing import Any, Literal

import torch

from deit_fast.recipe import Recipe

from .engine import LR, default_batch
from .measure import (
    Row,
    Session,
    free_memory,
    interleave,
    is_out_of_memory,
    peak_memory_mb,
    rate,
    reset_peak_memory,
)
from .workload import (
    TINY,
    ZOO,
    add_fitting_row,
    build_step,
    count_parameters,
    find_recipe,
    forward_macs,
    in_turn,
    synthetic_batches,
    training_flops,
)

Mode = Literal["inference", "train"]
LARGEST = {"cuda": 4096, "cpu": 64}
WORTH = 1.02  # a doubled batch has to gain this much for the search to go on


def run(session: Session, mode: Mode, models: list[str] | None, batch: int | Literal["auto"] | None) -> None:
    """One row per model."""
    models = models or ([TINY] if session.quick and session.device.type == "cpu" else ZOO)
    session.settings = {"mode": mode, "batch": batch or "default"}
    ceiling = session.measure_ceiling()
    for word in models:
        if session.out_of_time(word):
            continue
        size = find_batch(session, mode, word) if batch == "auto" else batch
        add_fitting_row(
            session,
            word,
            size or default_batch(word, session.device, session.quick),
            lambda word, size: _measure(session, mode, word, size, ceiling, fixed=batch != "auto"),
        )


def find_batch(session: Session, mode: Mode, word: str) -> int:
    """The batch after which doubling no longer pays, or no longer fits. Searched without torch.compile, which would
    take a minute at every size."""
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
    """One training step, or one evaluated batch, on batches in turn."""
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
        seconds=0.3 if session.quick else 1.0,
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
    """Inference needs no moving average beside the model."""
    return [*words, *(["optim.ema_decay=null"] if mode == "inference" else [])]


def _silent(_: str) -> None:
    pass


def _nothing() -> None:
    pass
