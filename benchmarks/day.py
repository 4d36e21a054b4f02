"""A day of measurements on a GPU, or its first minutes: the most valuable figures first, each written at once.

Each part is a process of its own. OUT/figures.jsonl gets a line for each figure, OUT/day.json the outcome of each part.
A part that ended well is not run again, so the next call continues where this one stopped. `--rehearse` runs every part
on a CPU with the smallest model, and estimates the cost of the parts on a GPU from that (day_costs.py). It uses one
thread, because several threads wait for each other where other programs run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from deit_fast.runtime.errors import DataError
from deit_fast.runtime.files import write_json
from deit_fast.runtime.table import markdown_table

from .day_costs import Cost, expected_seconds, record_costs
from .figures import read_figures
from .workload import TINY

B, S, L, H = "deit3_base_patch16", "deit3_small_patch16", "deit3_large_patch16", "deit3_huge_patch14"
GRACE = 10.0  # seconds beyond its limit in which a part may end its work
OK = "ok"


class Part(NamedTuple):
    """A command of this CLI, and its cost on a GPU."""

    words: str
    cost: Cost
    data: bool = False
    rehearsed: str | None = None
    """The command in a rehearsal; "" for none, if an earlier part rehearses the same."""


def _engine(model: str, against: str, blocks: int, words: str = "", rehearsed: str = "") -> Part:
    engines = 1 + len(against.split())
    compiled = engines - ("reference" in against)
    cost = Cost(graphs=2 * compiled, blocks=blocks, timed=2 * engines * 4.0)  # three repeats, a warm-up like one
    return Part(f"engine --models {model} --against {against} {words}".strip(), cost, rehearsed=rehearsed)


_REHEARSED = f"engine --models {TINY} --against"
PARTS = [
    Part("gpu-tests", Cost(timed=40)),
    _engine(f"{B}@224", "timm", 12, rehearsed=f"{_REHEARSED} timm -- run.compile=on"),
    Part(f"optimizer --models {B} {S}", Cost(timed=25), rehearsed=f"optimizer --models {TINY}"),
    _engine(f"{S}@224", "timm", 12),
    Part("decode", Cost(timed=10), data=True),
    Part("loader --cases three_augment evaluation", Cost(timed=40), data=True, rehearsed="loader --cases evaluation"),
    Part(f"end-to-end --models {B}@224", Cost(graphs=1, blocks=12, timed=30), data=True,
         rehearsed=f"end-to-end --models {TINY}"),
    _engine(f"{L}@192", "timm", 24),
    _engine(f"{B}@224", "ours_dense reference", 12, rehearsed=f"{_REHEARSED} ours_dense reference"),
    _engine(f"{B}@224", "ours_autocast", 12, "-- run.compute_copy=true"),
    _engine(f"{H}@160", "timm", 32),
    Part("throughput --mode inference", Cost(graphs=1, blocks=12, timed=10), rehearsed="throughput --mode inference "
         f"--models {TINY}"),
    _engine(f"{B}@384", "timm", 12),
    _engine(f"{S}@384", "timm", 12),
    Part("loader", Cost(timed=90), data=True, rehearsed=""),
    Part("throughput --mode train", Cost(graphs=1, blocks=12, timed=10), rehearsed=f"throughput --mode train "
         f"--models {TINY}"),
]  # fmt: skip
"""The most valuable parts first. Parts beyond 7 minutes are left for the next call."""


def run_day(
    device: str, rehearse: bool, out: Path, minutes: float, data: str | None, parts: list[Part] | None = None
) -> int:
    """Runs the parts without the outcome "ok" in OUT, within `minutes`, and prints a table of the figures.

    Returns 0 if every part that ran ended well. A part is started only if its first figure is expected within the time
    left.
    """
    end, status = time.perf_counter() + 60 * minutes, 0
    chosen = [part for part in parts or PARTS if not rehearse or part.rehearsed != ""]
    outcomes = _read_outcomes(out)
    for part in sorted(chosen, key=lambda part: outcomes.get(part.words, {}).get("outcome", OK) != OK):
        left, expected = end - time.perf_counter(), expected_seconds(part.cost)
        if outcomes.get(part.words, {}).get("outcome") == OK:
            _say(f"done before: {part.words}")
            continue
        if left < (1.0 if rehearse else expected.first):
            _say(f"not started, {left:.0f} s left, first figure after about {expected.first:.0f}: {part.words}")
            continue
        _say(f"{part.words} (expected {expected.whole:.0f} s on a GPU, {left:.0f} s left)")
        words = (part.rehearsed or part.words) if rehearse else part.words
        started, cpu = time.perf_counter(), _cpu_of_children()
        command = _command(words, device, rehearse, out, left, data if part.data else None)
        outcome = _run(command, left, {"OMP_NUM_THREADS": "1"} if rehearse else {})
        seconds, cpu = time.perf_counter() - started, _cpu_of_children() - cpu
        outcomes[part.words] = {"outcome": outcome, "seconds": seconds, "cpu_seconds": cpu, "ran": words}
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "day.json", outcomes)
        status |= outcome != OK and not outcome.startswith("stopped")
    if rehearse:
        record_costs(out, outcomes)
    print("\n".join(_table(out, outcomes, chosen)), flush=True)
    return status


def _command(words: str, device: str, rehearse: bool, out: Path, left: float, data: str | None) -> list[str]:
    name, *others = words.split()
    options = [name, "--device", device, "--out", str(out), "--minutes", f"{left / 60:.2f}"]
    options += ["--quick" if rehearse else "--brief", *(["--data", data] if data else [])]
    return [sys.executable, "-m", __package__ or "benchmarks", *options, *others]


def _run(command: list[str], seconds: float, variables: dict[str, str]) -> str:
    """Runs a command in its own process group, so that its workers end with it; returns its outcome in words."""
    process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, env=os.environ | variables)
    try:
        status = process.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        return "stopped: out of time"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return OK if status == 0 else f"failed with status {status}"


def _read_outcomes(out: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads((out / "day.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{out / 'day.json'}: expected the outcomes of an earlier call ({error})") from None
    return found if isinstance(found, dict) else {}


def _table(out: Path, outcomes: dict[str, dict[str, Any]], parts: list[Part]) -> list[str]:
    rows = []
    for part in parts:
        done = outcomes.get(part.words)
        rows.append([part.words, f"{done['seconds']:.0f} s" if done else "", done["outcome"] if done else "not yet"])
    figures = [[each["benchmark"], each["name"], f"{each['value']:,.4g}", each["unit"]] for each in read_figures(out)]
    return [*markdown_table(["part", "took", "outcome"], rows), "",
            *markdown_table(["of", "figure", "value", "unit"], figures)]  # fmt: skip


def _cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)
