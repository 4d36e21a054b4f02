"""How long training stands still for a checkpoint: what `Saver` costs the thread that trains."""

import time
from pathlib import Path

import numpy as np
import torch

from deit_fast.distributed import World
from deit_fast.models.build import build_model
from deit_fast.objective import MicroBatch
from deit_fast.recipes import get_recipe
from deit_fast.saving import Saver
from deit_fast.step import TrainStep, build_state

WORDS = ["model.image_size=32", "run.global_batch=128", "run.precision=fp32"]
EVERY = 2  # steps between two checkpoints
P50, P99 = 1.0, 5.0  # %, of the time of a step


def measure(folder: Path, saves: int) -> tuple[str, list[str]]:
    """Per cent of a step's time that the copy and the wait for it take, over `saves` checkpoints; and what is too much.

    A step of 128 images of 32 px on the demo's model. What the writer takes from the training's cores is in neither.
    """
    recipe, world = get_recipe("demo_pretrain", WORDS), World(0, 1, torch.device("cpu"))
    torch.manual_seed(0)
    state = build_state(recipe, build_model(recipe.model))
    step = TrainStep(recipe, state, world, torch.float32)
    saver = Saver(folder, 2, state, world.device, [])
    waited, wait = [0.0], saver._wait_for_copy

    def timed_wait() -> None:
        began = time.perf_counter()
        wait()
        waited[0] += time.perf_counter() - began

    saver._wait_for_copy = timed_wait  # type: ignore[method-assign]
    batch = MicroBatch(torch.randint(0, 256, (128, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (128,)), None)
    beside = {"recipe": recipe.model_dump(mode="json"), "classes": None, "dtype": "torch.float32"}
    steps, stalls = [], []
    for _ in range(saves + 1):
        began, waited[0] = time.perf_counter(), 0.0
        saver.save(beside, None)
        stall = time.perf_counter() - began
        for _ in range(EVERY):
            began = time.perf_counter()
            step([batch], 1e-3)
            steps.append(time.perf_counter() - began)
        stalls.append(stall + waited[0])
    saver.close()
    p50, p99 = np.percentile(stalls[1:], [50, 99]) / np.median(steps) * 100  # the first allocates its buffers
    wrong = [] if p50 <= P50 and p99 <= P99 else [f"expected a stall of at most {P50} % (p50) and {P99} % (p99)"]
    return f"{saves} saves, stall of a step p50 {p50:.2f} %, p99 {p99:.2f} %", wrong
