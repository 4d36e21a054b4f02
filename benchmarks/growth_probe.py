"""One figure of `benchmarks growth`, taken in this process and printed as JSON.

    python -m benchmarks.growth_probe FOLDER open | resume BLOCK | epoch BLOCK | memory BLOCK PROCESSES

FOLDER holds data/ and the product's cache folder.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from deit_fast.data.loader.sampler import TrainSampler, build_order, build_samplers
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.identity import identify
from deit_fast.data.sources.open import open_source
from deit_fast.recipe.table import get_recipe

from .growth import EPOCH

_BATCH = 2048


def _open(folder: Path) -> Source:
    source = open_source(str(folder / "data"), "train")
    identify(source)
    return source


def _sampler(source: Source, block: int) -> TrainSampler:
    batch = min(_BATCH, len(source) // 4)
    recipe = get_recipe("deit3_small_1k_224", ["data.repeats=1", f"data.block={block}", f"run.global_batch={batch}"])
    return build_samplers(recipe, build_order(recipe, source), 0, 1)[0]


def open_once(folder: Path) -> dict[str, Any]:
    """Seconds, and CPU seconds, to open the data set and compute its identity; imports are not included."""
    start, cpu = time.perf_counter(), time.process_time()
    source = _open(folder)
    return {
        "images": len(source),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }


def resume(folder: Path, block: int) -> dict[str, Any]:
    """CPU seconds until the first batch's indices, in the middle of an epoch that no process has used before."""
    sampler = _sampler(_open(folder), block)
    cpu = time.process_time()
    sampler.batch(EPOCH * sampler.steps_per_epoch + sampler.steps_per_epoch // 2)
    return {"cpu_seconds": time.process_time() - cpu}


def epoch(folder: Path, block: int) -> dict[str, Any]:
    """How often each image occurs in an epoch: the number of images for each count."""
    source = _open(folder)
    sampler = _sampler(source, block)
    start, seen = time.perf_counter(), np.zeros(len(source), np.uint8)
    for step in range(EPOCH * sampler.steps_per_epoch, (EPOCH + 1) * sampler.steps_per_epoch):
        np.add.at(seen, sampler.batch(step).indices, 1)
    times, counts = np.unique(seen, return_counts=True)
    found = {str(time): count for time, count in zip(times.tolist(), counts.tolist(), strict=True)}
    return {"images_by_times": found, "seconds": time.perf_counter() - start}


def memory(folder: Path, block: int, processes: int) -> dict[str, Any]:
    """Bytes that a data set adds to the PSS of all processes together: opened, labels read, a batch drawn."""
    context = multiprocessing.get_context("spawn")
    barrier, added = context.Barrier(processes), context.Queue()
    started = [context.Process(target=_hold, args=(folder, block, barrier, added)) for _ in range(processes)]
    for process in started:
        process.start()
    total = sum(added.get() for _ in started)
    for process in started:
        process.join()
    return {"pss_bytes": total}


def _hold(folder: Path, block: int, barrier: Barrier, added: Any) -> None:
    barrier.wait()
    before = psutil.Process().memory_full_info().pss
    barrier.wait()
    source = _open(folder)
    sampler = _sampler(source, block)
    sampler.batch(EPOCH * sampler.steps_per_epoch)
    int(np.asarray(source.labels).sum())
    barrier.wait()
    added.put(psutil.Process().memory_full_info().pss - before)
    barrier.wait()


if __name__ == "__main__":
    _folder = Path(sys.argv[1])
    os.environ["DEIT_FAST_CACHE"] = str(_folder / "cache")
    _command, *_numbers = sys.argv[2:]
    _probes: dict[str, Callable[..., dict[str, Any]]] = {
        "open": open_once,
        "resume": resume,
        "epoch": epoch,
        "memory": memory,
    }
    print(json.dumps(_probes[_command](_folder, *map(int, _numbers))))
