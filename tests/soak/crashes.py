"""Kills runs at random moments and starts them again: they end with the same weights, every sample used once.

Each attempt is a fork of a parent that has imported everything, so that a round takes about a second. A third of the
kills happen inside a checkpoint write, at a sync or a rename; half of these first cut the file in two.
"""

import gc
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deit_fast.checkpoint import format as checkpoint
from deit_fast.checkpoint import resume as resuming
from deit_fast.checkpoint import save as saving
from deit_fast.data.loader.batches import Batch
from deit_fast.data.loader.pipeline import eval_pipeline, train_pipeline
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError
from deit_fast.training import loop, start
from deit_fast.training import run as train
from deit_fast.training.objective import BatchBuilder
from tests.soak.images import write_images
from tests.soak.rounds import Found, tell

WORDS = ["model.image_size=16", "model.num_classes=2", "run.global_batch=16", "schedule.epochs=6", "optim.lr=1e-2",
         "schedule.warmup_epochs=1", "run.log_every=3", "run.eval_every=2", "model.drop_path=0.3", "mix.mixup=0.8",
         "mix.group=4", "run.precision=fp32", "run.checkpoint_every=2", "data.repeats=3",
         "data.max_bad=0.5"]  # fmt: skip
PATIENCE = 120.0  # longest time of an attempt, seconds


def crashes(folder: Path, count: int, seed: int, plant: str) -> Found:
    """Kills runs on one and on two processes `count` times; each is restarted until it ends, and then compared."""
    warm_up()
    rng, wrong, kills, runs = random.Random(seed), list[str](), Counter[str](), 0
    write_images(folder / "data")
    expected = {}
    for size in (1, 2):
        started = time.monotonic()
        out = folder / f"straight{size}"
        assert launch(folder, out, size, None) == 0, (out.with_suffix(".log")).read_text()
        expected[size] = result_of(out, size), time.monotonic() - started
    while kills.total() < count and not wrong:
        size = 2 if rng.random() < 0.2 else 1
        out = folder / f"run{runs}"
        reference, seconds = expected[size]
        status = -1
        while status < 0:
            writes = 3 * kills["in a write"] <= kills.total()  # aims at a third; some attempts never reach their write
            kill = Kill.draw(rng, size, seconds, writes, plant) if kills.total() < count else Kill(plant=plant)
            status = launch(folder, out, size, kill)
            if status < 0:
                kills["in a write" if kill.writes else f"of rank {kill.victim}"] += 1
                if kills.total() % 10 == 0:
                    tell(f"crashes: {kills.total()} of {count}")
        runs += 1
        if status > 0:
            wrong.append(f"{out}: status {status}: {out.with_suffix('.log').read_text()[-300:]}")
        else:
            try:
                wrong += [f"{out}: {what}" for what in differences(result_of(out, size), reference)]
            except RunError as error:
                wrong.append(str(error))
            shutil.rmtree(out)
    each = ", ".join(f"{kills[where]} {where}" for where in sorted(kills))
    return Found(f"{kills.total()} kills ({each}), {runs} runs with {len(reference.bad)} bad files each", wrong)


def warm_up() -> None:
    """Imports, and builds the pipelines' graphs, which DALI caches; every attempt would do this first."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401

    recipe, device = get_recipe("demo_pretrain", WORDS), torch.device("cpu")
    pipelines = [train_pipeline(recipe.augment, 16, lambda: [], 16, device, 1),
                 eval_pipeline(16, lambda: [], 16, device, 1)]  # fmt: skip
    pipelines.clear()
    gc.collect()
    assert len(os.listdir("/proc/self/task")) == 1, "forks would inherit the locks of other threads"


@dataclass(frozen=True)
class Kill:
    """When one process of an attempt dies: after some seconds, or at the n-th sync or rename of its saving thread."""

    victim: int = 0
    seconds: float = PATIENCE
    writes: int = 0
    cuts: bool = False
    plant: str = ""

    @staticmethod
    def draw(rng: random.Random, size: int, seconds: float, writes: bool, plant: str) -> "Kill":
        if writes:
            return Kill(0, PATIENCE, rng.randint(1, 40), rng.random() < 0.5, plant)
        return Kill(rng.randrange(size), rng.uniform(0.1, 0.9) * seconds, 0, False, plant)


def launch(folder: Path, out: Path, size: int, kill: Kill | None) -> int:
    """Runs one attempt: 0 if it reached its end, -9 if it was killed, another status if it failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    children = [fork(lambda rank=rank: attempt(folder, out, rank, size, port, kill)) for rank in range(size)]
    statuses: dict[int, int] = {}
    followers: set[int] = set()
    ends = kill.seconds if kill else PATIENCE
    while len(statuses) < size:
        for child in set(children) - statuses.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                statuses[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() - began > ends and kill and children[kill.victim] not in statuses:
            os.kill(children[kill.victim], signal.SIGKILL)
        if any(statuses.values()):  # like a launcher: when one process has died, the others are ended
            for child in set(children) - statuses.keys():
                os.kill(child, signal.SIGKILL)
                followers.add(child)
        time.sleep(0.005)
    if kill and children[kill.victim] not in followers and statuses[children[kill.victim]] < 0:
        return statuses[children[kill.victim]]  # whatever status the lost connection gave the other process
    return max(statuses.values()) or min(statuses.values())


def fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)


def attempt(folder: Path, out: Path, rank: int, size: int, port: int, kill: Kill | None) -> None:
    """In the child: the run, with its output in a file and a line for each step that it trains on."""
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    record_steps(out.with_suffix(f".steps{rank}"))
    if kill:
        plant_bug(kill.plant)
        if kill.writes and rank == 0:
            die_writing(kill.writes, kill.cuts)
    train.train(get_recipe("demo_pretrain", WORDS), str(folder / "data"), out)
    sys.stdout.flush()


def record_steps(path: Path) -> None:
    """Notes the samples of every step before training on them; "start" marks a new attempt."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, b'"start"\n')
    build = BatchBuilder.__call__

    def build_and_note(self: BatchBuilder, batch: Batch) -> Any:
        pixels = hashlib.sha256(batch.images.numpy().tobytes()).hexdigest()[:16]
        os.write(file, (json.dumps([batch.step, batch.indices.tolist(), pixels]) + "\n").encode())
        return build(self, batch)

    BatchBuilder.__call__ = build_and_note  # type: ignore[method-assign]


def die_writing(count: int, cuts: bool) -> None:
    """Kills this process at the `count`-th sync or rename in the saving thread."""
    left = [count]

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(target: Any, *rest: Any) -> Any:
            if threading.current_thread().name.startswith("deit-fast-save"):
                left[0] -= 1
                if left[0] == 0:
                    path = f"/proc/self/fd/{target}" if isinstance(target, int) else target
                    unsynced = os.path.isfile(path) and os.stat(path).st_nlink == 1  # the data of a link are safe
                    if cuts and unsynced and ".tmp" in os.path.realpath(path):
                        os.truncate(path, os.path.getsize(path) // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(target, *rest)

        return called

    os.fsync, os.replace, os.link = deadly(os.fsync), deadly(os.replace), deadly(os.link)  # type: ignore[assignment]


def plant_bug(name: str) -> None:
    """Plants a bug that the rounds have to find.

    unsealed: seals are written before their files, and are not verified. forgetful: a resumed run trains on the first
    steps' samples again. leaky: updates do not wait for the copy of the state. amnesiac: a resumed run has forgotten
    which files are bad.
    """
    if name == "unsealed":
        write = checkpoint.write_checkpoint

        def seal_first(path: Path, state: dict[str, Any]) -> dict[str, str]:
            checkpoint.seal_checkpoint(path, {".safetensors": "0" * 64, ".pt": "0" * 64})
            return write(path, state)

        saving.write_checkpoint = seal_first
        resuming.verify_checkpoint = lambda path: ""
    elif name == "forgetful":
        loader = start.TrainLoader
        start.TrainLoader = lambda *rest, start_step, stop_step, **named: loader(  # type: ignore[assignment, misc]
            *rest, start_step=0, stop_step=stop_step - start_step, **named
        )
    elif name == "leaky":
        saving.Saver._wait_for_copy = lambda self: None  # type: ignore[method-assign]
        copy = saving.Snapshot.copy
        saving.Snapshot.copy = lambda self: (time.sleep(0.1), copy(self))[1]  # type: ignore[method-assign]
    elif name == "amnesiac":
        bad_images = loop.BadImages
        loop.BadImages = lambda known, *rest: (known.clear(), bad_images(known, *rest))[1]  # type: ignore[assignment, misc]


class Result(NamedTuple):
    """The result of a run, without its times."""

    state: dict[str, Any]
    summary: dict[str, Any]
    bad: list[str]
    lineages: list[list[Any]]
    """The samples on which each process trained, by step."""


def result_of(out: Path, size: int) -> Result:
    checkpoint.verify_checkpoint(out / "checkpoints" / "best.pt")
    checkpoint.verify_checkpoint(out / "checkpoints" / "last.pt")
    state = torch.load(out / "checkpoints" / "last.pt", weights_only=True)
    for clock in ("seconds", "timed_steps", "timed_seconds"):
        del state[clock]
    summary = json.loads((out / "result.json").read_text())
    for clock in ("images_per_second", "minutes", "peak_memory_gib", "checkpoint"):
        del summary[clock]
    listed = out / "bad_files.txt"
    bad = listed.read_text().splitlines() if listed.exists() else []
    return Result(state, summary, bad, [lineage_of(out.with_suffix(f".steps{rank}")) for rank in range(size)])


def lineage_of(path: Path) -> list[Any]:
    lineage: list[Any] = []
    fresh = False
    for line in path.read_text().splitlines():
        step = json.loads(line)
        if step == "start":
            fresh = True
            continue
        if fresh:  # steps of an attempt beyond its last checkpoint do not count
            del lineage[step[0] :]
            fresh = False
        lineage.append(step)
    return lineage


def differences(found: Result, expected: Result) -> list[str]:
    wrong = []
    for rank, (mine, theirs) in enumerate(zip(found.lineages, expected.lineages, strict=True)):
        if mine != theirs:
            wrong.append(f"rank {rank} trained on steps {[step for step, *_ in mine]}, or on other samples")
    if not equal(found.state, expected.state):
        wrong.append("another final state")
    if found.summary != expected.summary:
        wrong.append(f"another result: {found.summary}")
    if found.bad != expected.bad:
        wrong.append(f"other bad files: {found.bad}")
    return wrong


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)
