"""How long training waits for a checkpoint: the cost of `Saver` in the training thread."""

import time
from pathlib import Path

import numpy as np
import torch

from deit_fast.checkpoint import save as saving
from deit_fast.checkpoint.format import load_checkpoint
from deit_fast.checkpoint.save import Saver, Snapshot, step_path
from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.world import World
from deit_fast.training.objective import MicroBatch
from deit_fast.training.prepare import build_state, prepare
from tests.checkpoint.test_save import clone
from tests.soak.crashes import equal
from tests.soak.rounds import Found, rounds

WORDS = ["model.image_size=32", "run.global_batch=128", "run.precision=fp32"]
EVERY = 2  # steps between two checkpoints
CHECKED = 10  # saves between two comparisons of the file with the state
P50, P99 = 1.0, 5.0  # limits, % of the time of a step


def stalls(folder: Path, count: int, seed: int, plant: str) -> Found:
    """Per cent of a step's time that the copy, and the wait for it, take over `count` checkpoints; and limits exceeded.

    The step has 128 images of 32 px on the demo's model. The writer's use of the training's cores is not measured.
    Planted bugs: synchronous: a save returns only when it is written. leaky: updates do not wait for the copy.
    """
    recipe, world, device = get_recipe("demo_pretrain", WORDS), World(0, 1, torch.device("cpu")), torch.device("cpu")
    torch.manual_seed(seed)
    state = build_state(recipe, build_model(recipe.model))
    step = prepare(recipe, state, world, torch.float32)
    if plant == "leaky":
        copy = Snapshot.copy

        def copy_late(self: Snapshot) -> None:
            before = state.step
            while state.step == before:
                time.sleep(0.01)
            copy(self)

        saving.Saver._wait_for_copy = lambda self: None  # type: ignore[method-assign]
        Snapshot.copy = copy_late  # type: ignore[method-assign]
    saver = Saver(folder, 2, state, device, [])
    waited, wait = [0.0], saver._wait_for_copy

    def timed_wait() -> None:
        began = time.perf_counter()
        wait()
        waited[0] += time.perf_counter() - began

    saver._wait_for_copy = timed_wait  # type: ignore[method-assign]
    batch = MicroBatch(torch.randint(0, 256, (128, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (128,)), None)
    beside = {"recipe": recipe.model_dump(mode="json"), "classes": None, "dtype": "torch.float32"}
    steps, found, wrong, fair = list[float](), list[float](), list[str](), False  # the first save allocates its buffers
    for number in rounds(count + count // CHECKED + 1, "stalls"):
        checks = number % CHECKED == CHECKED - 1
        expected = (state.step, clone(state.state_dict())) if checks else None
        began, waited[0] = time.perf_counter(), 0.0
        saver.save(beside)
        if plant == "synchronous":
            saver.finish()
        stall = time.perf_counter() - began
        for _ in range(EVERY):
            began = time.perf_counter()
            step([batch], 1e-3)
            steps.append(time.perf_counter() - began)
        if fair:
            found.append(stall + waited[0])
        fair = expected is None  # after a check the file is written already, so the next save would not wait
        if expected is not None:
            saver.finish()
            saved = load_checkpoint(step_path(folder, expected[0]), device)
            if not all(equal(saved[key], value) for key, value in expected[1].items()):  # type: ignore[attr-defined]
                wrong.append(f"the file of step {expected[0]} is not of one step")
    saver.finish()
    p50, p99 = np.percentile(found, [50, 99]) / np.median(steps) * 100
    if p50 > P50 or p99 > P99:
        wrong.append(f"expected a stall of at most {P50} % (p50) and {P99} % (p99)")
    return Found(f"{len(found)} saves timed, stall p50 {p50:.2f} %, p99 {p99:.2f} % of {np.median(steps):.2f} s", wrong)
