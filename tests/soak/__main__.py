"""The soak tests in full: `python -m tests.soak` prints a row for each as soon as it is done; docs in each module."""

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from deit_fast.runtime.errors import one_line
from tests.soak import crashes, damages, faults, fuzz, fuzz_recipes, hangs, hostile_files, schedules, stalls, streams
from tests.soak.rounds import Found


class Kind(NamedTuple):
    asked: str
    count: int
    least: int
    run: Callable[[Path, int, int, str], Found]
    """(folder, count, seed, name of a planted bug) -> the result."""
    plants: tuple[str, ...]


KINDS = {
    "crashes": Kind("1,000 kills, a third in a write: no sample lost or doubled, the same final state and bad files",
                    1000, 10, crashes.crashes, ("unsealed", "forgetful", "leaky", "amnesiac")),
    "faults": Kind("500 interrupts, kills, stale mounts and full disks: nothing lost, doubled or silently different",
                   500, 10, faults.faults, ("forgetful", "amnesiac")),
    "schedules": Kind("100 changes of the world size: same ordered batches, same pixels", 100, 1, schedules.schedules,
                      ("forgetful",)),
    "damages": Kind("1,000 damaged checkpoints: all seen before loading, newest whole one used, one line", 1000, 10,
                    damages.damages, ("short-hash",)),
    "stalls": Kind("state of one step; stall p50 <= 1 %, p99 <= 5 % of a step", 200, 10, stalls.stalls,
                   ("synchronous", "leaky")),
    "hangs": Kind("worker, loader, collective: told in <= 30 s, goes on from its checkpoint, no orphan", 30, 3,
                  hangs.hangs, ("deaf",)),
    "streams": Kind("200 kills of readers of a store that fails, a disk of two blocks: local shards' batches",
                    200, 10, streams.streams, ("hasty",)),
    "images": Kind("10,000 fuzzed images: no crash, hang or wrong label, substituted ones named", 10_000, 100,
                   fuzz.images, ("mislabelled",)),
    "shards": Kind("10,000 fuzzed shards: no crash, hang or wrong label", 10_000, 100, fuzz.shards, ("shifted",)),
    "checkpoints": Kind("fuzzed checkpoints: the exact content or one line", 10_000, 100, fuzz.checkpoints,
                        ("short-hash",)),
    "recipes": Kind("fuzzed recipes and words: a valid recipe or one line", 20_000, 300, fuzz_recipes.recipes,
                    ("unforeseen",)),
    "hostile": Kind("code by at least 20 routes, bombs, huge headers: nothing run, each refused in <= 1 s", 300, 1,
                    hostile_files.hostile, ("trusting",)),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("what", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--share", type=float, default=1.0, help="of the full numbers (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", default="", help="of one kind, a bug that has to be found")
    chosen = parser.parse_args()
    kinds = chosen.what or list(KINDS)
    for name in kinds:
        if name not in KINDS:
            parser.error(f"{name}: expected one of {', '.join(KINDS)}")
        if chosen.plant and chosen.plant not in KINDS[name].plants:
            parser.error(f"--plant {chosen.plant}: expected one of {', '.join(KINDS[name].plants)} with {name}")
    print("| what | figure | reached | wrong | time |\n|---|---|---|---|---|", flush=True)
    red = False
    for name in kinds:
        kind, started = KINDS[name], time.monotonic()
        found = in_a_process(kind, max(kind.least, math.ceil(kind.count * chosen.share)), chosen.seed, chosen.plant)
        minutes = (time.monotonic() - started) / 60
        print(f"| {name} | {kind.asked} | {found.reached} | {len(found.wrong)} wrong | {minutes:.1f} min |", flush=True)
        for line in found.wrong[:20]:
            print(f"  {name}: {one_line(line)[:500]}", file=sys.stderr, flush=True)
        red = red or bool(found.wrong)
    return 1 if red else 0


def silence_libraries() -> None:
    """Hides what decoders print about each damaged image; Python's stderr stays."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)


def in_a_process(kind: Kind, count: int, seed: int, plant: str) -> Found:
    """Runs in a fork, so that threads, planted bugs and crashes of one kind do not affect another."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, get_context("fork"), silence_libraries) as pool,
    ):
        try:
            return pool.submit(kind.run, Path(folder), count, seed, plant).result()
        except BrokenProcessPool:
            return Found("ended by a crash or a hang", ["the process of the rounds died; its stacks are above"])
        except Exception as error:
            return Found("ended by an error", [f"{type(error).__name__}: {error}"])


if __name__ == "__main__":
    sys.exit(main())
