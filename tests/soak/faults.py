"""Runs with one fault after another: interrupts, kills, a stale mount, a full disk.

Each attempt is a fork, as in crashes.py, and has one fault at a random moment. It continues, or it ends with a status
after which the same command continues. In the end the run has the weights and samples of a run without faults.
"""

import errno
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit_fast.data.sources.folder import ImageFolder
from deit_fast.runtime import patience
from deit_fast.runtime.errors import DataError, RunError, StoppedError
from deit_fast.runtime.exit_status import ExitStatus
from tests.soak.crashes import PATIENCE, Result, attempt, differences, fork, plant_bug, result_of, warm_up
from tests.soak.images import write_images
from tests.soak.rounds import Found, tell

KINDS = ("SIGINT", "SIGINT twice", "SIGKILL", "ESTALE", "ENOSPC")
# Allowed statuses besides 0: a fault may be over before it does harm.
ENDS = {
    "SIGINT": {ExitStatus.INTERRUPTED},
    "SIGINT twice": {ExitStatus.INTERRUPTED},
    "SIGKILL": {-signal.SIGKILL},
    "ESTALE": {ExitStatus.STORAGE_FAILED},
    "ENOSPC": {ExitStatus.STORAGE_FAILED},
    "none": set[int](),
}
SHORT_PATIENCE = 0.4  # seconds, instead of a run's minute


@dataclass(frozen=True)
class Fault:
    """A fault of one process; a signal may go to all processes."""

    kind: str = "none"
    victim: int = 0
    seconds: float = PATIENCE
    """When a signal is sent, seconds."""
    call: int = 0
    """The number of the first read or write that fails."""
    calls: int = 0
    """How many of them fail."""

    @staticmethod
    def draw(rng: random.Random, size: int, seconds: float) -> "Fault":
        kind = rng.choice(KINDS)
        if kind in ("ESTALE", "ENOSPC"):
            lasts = rng.choice((1, 2, 5, 100_000))
            return Fault(kind, rng.randrange(size) if kind == "ESTALE" else 0, PATIENCE, rng.randint(1, 200), lasts)
        return Fault(kind, rng.randrange(size), rng.uniform(0.05, 0.95) * seconds)


def faults(folder: Path, count: int, seed: int, plant: str) -> Found:
    """Causes `count` faults on one and on two processes; each run is restarted until it ends, and then compared.

    The planted bugs are those of crashes.py.
    """
    warm_up()
    rng, wrong, met, ended, runs = random.Random(seed), list[str](), Counter[str](), Counter[int](), 0
    write_images(folder / "data")
    expected = {}
    for size in (1, 2):
        began = time.monotonic()
        out = folder / f"straight{size}"
        assert launch(folder, out, size, Fault(), "") == 0, out.with_suffix(".log").read_text()
        expected[size] = result_of(out, size), time.monotonic() - began
    while met.total() < count and not wrong:
        size = 2 if rng.random() < 0.2 else 1
        out, status, fault = folder / f"run{runs}", -1, Fault()
        reference, seconds = expected[size]
        while status and not wrong:
            fault = Fault.draw(rng, size, seconds) if met.total() < count else Fault()
            status = launch(folder, out, size, fault, plant)
            met[fault.kind] += fault.kind != "none"
            ended[status] += 1
            if status and status not in ENDS[fault.kind]:
                wrong.append(f"{out}: {fault}: status {status}: {out.with_suffix('.log').read_text()[-300:]}")
            elif met.total() % 10 == 0:
                tell(f"faults: {met.total()} of {count}")
        runs += 1
        if not wrong:
            try:
                found, same = result_of(out, size), reference
                if "no checkpoint this time" in out.with_suffix(".log").read_text():  # the best may be another
                    found, same = without_best(found), without_best(same)
                wrong += [f"{out}: after {fault}: {what}" for what in differences(found, same)]
            except RunError as error:
                wrong.append(str(error))
            shutil.rmtree(out)
            for left in folder.glob(f"{out.name}.*"):
                left.unlink()
    each = ", ".join(f"{met[kind]} {kind}" for kind in KINDS)
    ends = ", ".join(f"{ended[status]} with {status}" for status in sorted(ended))
    return Found(f"{met.total()} faults ({each}), {runs} runs; attempts ended {ends}", wrong)


def without_best(result: Result) -> Result:
    """The result without its best checkpoint: a full disk may have had no room for the one with the highest score."""
    parts = ({key: value for key, value in part.items() if key != "best_top1"} for part in result[:2])
    return Result(*parts, *result[2:])


def launch(folder: Path, out: Path, size: int, fault: Fault, plant: str) -> int:
    """Runs one attempt; returns its status, negative for a signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began, sent = time.monotonic(), 0
    children = [fork(lambda rank=rank: meet(folder, out, rank, size, port, fault, plant)) for rank in range(size)]
    statuses: dict[int, int] = {}
    first = 0
    while len(statuses) < size:
        for child in set(children) - statuses.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                statuses[child] = os.waitstatus_to_exitcode(status)
                first = first or statuses[child]
        alive = set(children) - statuses.keys()
        waited = time.monotonic() - began
        if fault.kind.startswith("SIGINT") and waited > fault.seconds and sent < 1 + fault.kind.endswith("twice"):
            sent += 1  # a terminal's signal goes to all processes
            for child in alive:
                os.kill(child, signal.SIGINT)
        if fault.kind == "SIGKILL" and waited > fault.seconds and children[fault.victim] in alive:
            os.kill(children[fault.victim], signal.SIGKILL)
        if (first and not fault.kind.startswith("SIGINT")) or waited > PATIENCE:  # like a launcher, ends the others
            for child in alive:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return first


def meet(folder: Path, out: Path, rank: int, size: int, port: int, fault: Fault, plant: str) -> None:
    """In the child: the run with its fault; ends with the status of the command line."""
    patience.PATIENCE_SECONDS = SHORT_PATIENCE
    plant_bug(plant)
    if rank == fault.victim and fault.kind == "ESTALE":
        stale = OSError(errno.ESTALE, "Stale file handle")
        ImageFolder.read = failing(ImageFolder.read, fault, stale)  # type: ignore[method-assign]
    if rank == fault.victim and fault.kind == "ENOSPC":
        full = OSError(errno.ENOSPC, "No space left on device")
        for name in ("fsync", "replace", "link"):
            setattr(os, name, failing(getattr(os, name), fault, full, "deit-fast-save"))
    try:
        attempt(folder, out, rank, size, port, None)
    except KeyboardInterrupt:
        os._exit(ExitStatus.INTERRUPTED)
    except (DataError, RunError, StoppedError) as error:
        os.write(2, f"{error}\n".encode())
        os._exit(error.status)


def failing(call: Callable[..., Any], fault: Fault, error: OSError, thread: str = "") -> Callable[..., Any]:
    """`call`, failing for a while in threads with that name."""
    made = [0]

    def called(*rest: Any, **named: Any) -> Any:
        if threading.current_thread().name.startswith(thread):
            made[0] += 1
            if fault.call <= made[0] < fault.call + fault.calls:
                raise OSError(error.errno, error.strerror)
        return call(*rest, **named)

    return called
