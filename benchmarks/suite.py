"""Everything in one call, inside a time budget: the most important first, each part a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

GRACE = 20.0  # seconds that a part may overrun while it ends what it began
LEAST = 15.0  # with less left, a part is not started


class Part(NamedTuple):
    words: str
    minutes: float
    """Most that this part may take on a GPU, compilation included."""
    needs_images: bool = False


PARTS = {
    "cuda": [
        Part("engine --models deit3_base_patch16@224", 1.5),
        Part("optimizer", 0.7),
        Part("engine --models deit3_small_patch16@224", 1.2),
        Part("loader", 1.0, True),
        Part("end-to-end --models deit3_base_patch16@224 deit3_small_patch16@224", 1.3, True),
        Part("engine --models deit3_small_patch16@224 --batch 256 run.cuda_graph=true", 1.2),
        Part("engine --models deit3_base_patch16@224 run.compute_copy=true", 1.5),
        Part("engine --models deit3_large_patch16@192", 2.0),
        Part("engine --models deit3_huge_patch14@160", 2.5),
        Part("throughput --mode inference", 2.5),
        Part("engine --models deit3_base_patch16@384", 1.5),
        Part("engine --models deit3_small_patch16@384", 1.5),
        Part("throughput --mode train", 4.0),
        Part("throughput --mode inference --batch auto", 4.0),
        Part("throughput --mode train --batch auto", 6.0),
    ],
    "cpu": [
        Part("loader", 3.0, True),
        Part("optimizer", 1.0),
        Part("engine --models deit3_tiny_patch16@224", 2.0),
        Part("end-to-end", 2.0, True),
        Part("engine --models deit3_small_patch16@224", 3.0),
        Part("throughput --mode inference", 2.0),
        Part("throughput --mode train", 4.0),
    ],
}
QUICK = [Part("engine", 1.0), Part("optimizer", 1.0), Part("loader", 2.0, True), Part("end-to-end", 2.0, True),
         Part("throughput --mode inference", 1.0), Part("throughput --mode train", 1.0)]  # fmt: skip


def run_all(
    device: str, quick: bool, out: Path, minutes: float, data: str | None, parts: list[Part] | None = None
) -> int:
    """Runs the parts that fit into `minutes`, writes their JSONs and a report into `out`, prints a summary.

    0 where every part that was started ended well. One that crashes or hangs costs its own figures only.
    """
    end = time.perf_counter() + 60 * minutes
    outcomes: list[tuple[str, str]] = []
    for part in parts or (QUICK if quick else PARTS[device]):
        left = end - time.perf_counter()
        if left < LEAST:
            outcomes.append((part.words, "not started: out of time"))
            continue
        allowed = min(left, 60 * part.minutes)
        command = [sys.executable, "-m", __package__ or "benchmarks", *part.words.split(), "--device", device]
        command += ["--out", str(out), "--minutes", f"{allowed / 60:.2f}"]
        command += ["--data", data] if data and part.needs_images else []
        command += ["--quick"] if quick else []
        print(f"== {part.words} (at most {allowed:.0f} s, {left:.0f} s left)", file=sys.stderr, flush=True)
        started = time.perf_counter()
        status = _run(command, min(allowed + GRACE, left))
        outcomes.append((part.words, f"{status}, {time.perf_counter() - started:.0f} s"))
    print("\n" + summary(out))
    for words, outcome in outcomes:
        print(f"{outcome:32} {words}")
    from .report import write_report

    print(write_report(out, out))
    return int(any(outcome.startswith(("failed", "stopped")) for _, outcome in outcomes))


def _run(command: list[str], seconds: float) -> str:
    """Runs a command in a process group of its own, so that its loader workers end with it."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status is None:
        return "stopped: out of time"
    return "ok" if status == 0 else f"failed with status {status}"


def summary(folder: Path) -> str:
    """One line per figure that matters, of the JSONs in a folder."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for row in content["rows"]:
            name = row.get("case") or f"{row['model']}@{row.get('resolution', '')}".rstrip("@")
            figures = {**row.get("ratios", {}), **row.get("ours_over_floor", {})}
            if "images_per_second" in row and "median" in row["images_per_second"]:
                figures["images_per_second"] = row["images_per_second"]["median"]
            text = "  ".join(f"{key} {value:.3g}" for key, value in figures.items())
            lines.append(f"{content['benchmark']:12} {content['device']:5} {name:28} {text}")
    return "\n".join(lines)
