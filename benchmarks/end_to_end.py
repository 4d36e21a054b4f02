"""Loader and step on real images, against the same step on synthetic batches and against R with its own loader."""

import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deit_fast.runtime.hardware import cpu_threads
from deit_fast.runtime.world import World
from deit_fast.training.job import plan_job
from deit_fast.training.objective import BatchBuilder
from deit_fast.training.prepare import initial_state, prepare
from deit_fast.training.start import build_loader

from .engine import LR, default_batch
from .images import open_images
from .loader import MOST_WORKERS
from .measure import Row, Session, free_memory, rate, stats, synchronise
from .peers import ReferenceBatch, ReferenceEngine
from .pil import pil_loader, three_augment_chain
from .workload import TINY, find_recipe, in_turn, synthetic_batches

MODELS = {"cuda": ["deit3_base_patch16@224", "deit3_small_patch16@224"], "cpu": ["deit3_tiny_patch16@224"]}
STEPS = {"cuda": 40, "cpu": 6}
SETTLE = 8  # untimed steps after a change of case: more than the loader's queue holds


def run(session: Session, data: str | None, models: list[str] | None, batch: int | None) -> None:
    """One row per model."""
    device = session.device
    models = models or ([TINY] if session.quick and device.type == "cpu" else MODELS[device.type])
    with open_images(data, session.quick, limit=1 << 62) as (source, described):
        session.settings = {"data": described, "threads": cpu_threads(), "settle_steps": SETTLE}
        for word in models:
            if session.out_of_time(word):
                continue
            size = batch or default_batch(word, device, session.quick) * (4 if device.type == "cpu" else 1)
            size = min(size, len(source) // 2 * 2)
            session.add(_measure(session, word, source, size))
            free_memory()


def _measure(session: Session, word: str, source: Any, batch: int) -> Row:
    device = session.device
    steps, settle = (3, 2) if session.quick else (STEPS[device.type], SETTLE)
    # The schedule is longer than the timed part, so that the loader never reaches its end.
    recipe = find_recipe(word, batch, [f"model.num_classes={len(source.classes)}", "data.repeats=3"])
    recipe = recipe.override([f"schedule.epochs={10_000}"])
    session.say(f"{word}, batch {batch}")
    with tempfile.TemporaryDirectory(prefix="deit-fast-run-") as folder:
        job = plan_job(recipe, source, None, Path(folder), World(0, 1, device))
        step = prepare(recipe, initial_state(recipe, job.world), job.world, job.dtype)
        loader = build_loader(job, start=0)
        build_batch, stream = BatchBuilder(recipe, device), iter(loader)
        waited = 0.0

        def from_disk() -> None:
            nonlocal waited
            asked = time.perf_counter()
            drawn = next(stream)
            waited += time.perf_counter() - asked
            step([build_batch(drawn)], LR)

        synthetic = in_turn(lambda each: step([each], LR), synthetic_batches(recipe, device))
        reference = ReferenceEngine(recipe, device)
        order = list(range(len(source))) * 3
        random.Random(0).shuffle(order)
        peer_stream = _endless(lambda: _reference_loader(source, order, recipe, batch, device))

        def reference_from_disk() -> None:
            images, labels = next(peer_stream)
            images, labels = (each.to(device, non_blocking=True) for each in (images, labels))
            reference(ReferenceBatch(images, labels, lam=0.5), LR)

        cases: dict[str, Callable[[], None]] = {"real": from_disk, "synthetic": synthetic}
        if not session.quick:
            cases["reference"] = reference_from_disk
        samples: dict[str, list[float]] = {name: [] for name in cases}
        waits: list[float] = []
        try:
            for repeat in range(session.repeats):
                session.say(f"repeat {repeat + 1} of {session.repeats}")
                for name, call in cases.items():
                    for _ in range(settle if repeat or device.type == "cpu" else 3 * settle):
                        call()
                    synchronise(device)
                    waited, start = 0.0, time.perf_counter()
                    for _ in range(steps):
                        call()
                    synchronise(device)
                    seconds = time.perf_counter() - start
                    samples[name].append(seconds / steps)
                    session.note(f"{word} {name}", batch / stats(samples[name])["median"], "images/s")
                    if name == "real":
                        waits.append(waited / seconds)
                        session.note(f"{word} waiting for data", 100 * stats(waits)["median"], "%")
        finally:
            loader.close()
    rates = {name: rate(batch, stats(each)) for name, each in samples.items()}
    row: Row = {
        "model": recipe.model.name,
        "resolution": recipe.model.image_size,
        "batch": batch,
        "steps_per_repeat": steps,
        "repeats_of_an_image": 3,
        "images_per_second": rates,
        "data_wait": stats(waits),
        "ratios": {"real_over_synthetic": rates["real"]["median"] / rates["synthetic"]["median"]},
    }
    if "reference" in rates:
        row["ratios"]["real_over_reference"] = rates["real"]["median"] / rates["reference"]["median"]
    return row


def _reference_loader(source: Any, order: list[int], recipe: Any, batch: int, device: Any) -> Any:
    workers = min(MOST_WORKERS, cpu_threads())
    chain = three_augment_chain(recipe.model.image_size, recipe.data)
    return pil_loader(source, order, chain, batch, workers, device.type == "cuda")


def _endless(build: Callable[[], Any]) -> Iterator[Any]:
    """Whole batches, epoch after epoch; the workers start with the first."""
    for _ in itertools.count():
        yield from build()
