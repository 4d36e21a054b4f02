"""Costs that depend on the size of a data set: index, start, order, memory, for 10 thousand to millions of tiny images.

Each figure is measured in a process of its own, so that only the disk's cache is warm. The exponent of a cost is the
slope of its logarithm over the logarithm of the number of images, from one size to the next: 1 is linear growth, 0 is
none.
"""

import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from deit_fast.runtime.errors import RunError

from .measure import Row, Session
from .tiny_shards import SAMPLE_BYTES, write_tiny_shards

SIZES = (10_000, 100_000, 1_000_000)
EPOCH = 200  # the epoch in whose middle a run resumes
PROCESSES = 8
_SHARD_IMAGES = 6348  # 13 million images in 2,048 shards
_COSTS = ("index_cpu_seconds", "open_cpu_seconds", "resume_full_cpu_seconds", "resume_block_cpu_seconds", "pss_bytes")


def run(session: Session, sizes: list[int]) -> None:
    """A row for each size. Raises RunError where the disk has too little room."""
    session.settings = {"epoch": EPOCH, "processes": PROCESSES, "images_per_shard": _SHARD_IMAGES}
    for images in sorted(sizes):
        if session.out_of_time(f"{images} images"):
            continue
        with tempfile.TemporaryDirectory(prefix="deit-fast-growth-", dir=session.path.parent) as folder:
            _check_room(Path(folder), images)
            session.add(_measure(session, Path(folder), images))
        if len(session.rows) > 1:
            before, last = session.rows[-2:]
            last["exponents"] = {cost: _exponent(before, last, cost) for cost in _COSTS}
            session.save()


def _measure(session: Session, folder: Path, images: int) -> Row:
    shards = max(2, round(images / _SHARD_IMAGES))
    session.say(f"{images} images in {shards} shards: writing them")
    size = write_tiny_shards(folder / "data", images, shards)
    row: Row = {"images": images, "shards": shards, "bytes": size}
    session.say("making the index")
    row["index_cpu_seconds"] = _ask(folder, "open")["cpu_seconds"]
    row["index_bytes"] = sum(path.stat().st_size for path in (folder / "data").glob("*.index.*"))
    session.say("opening it again, five times")
    opened = [_ask(folder, "open") for _ in range(5)]
    row["open_cpu_seconds"] = sorted(each["cpu_seconds"] for each in opened)[2]
    row["open_seconds"] = sorted(each["seconds"] for each in opened)[2]
    for name, block in (("full", 0), ("block", min(shards, max(1, round(2 * math.sqrt(shards)))))):
        session.say(f"going on in epoch {EPOCH}, data.block={block}")
        row[f"block_{name}"] = block
        row[f"resume_{name}_cpu_seconds"] = _ask(folder, "resume", str(block))["cpu_seconds"]
        session.say(f"an epoch's order, data.block={block}")
        row[f"epoch_{name}"] = _ask(folder, "epoch", str(block))
        session.say(f"memory of {PROCESSES} processes, data.block={block}")
        row[f"pss_{name}_bytes"] = _ask(folder, "memory", str(block), str(PROCESSES))["pss_bytes"]
    row["pss_bytes"] = row["pss_full_bytes"]
    return row


def _ask(folder: Path, *words: str) -> Row:
    """The result of a fresh process; the cache folder is kept between processes."""
    command = [sys.executable, "-m", f"{__package__}.growth_probe", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"{' '.join(words)}: status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def _exponent(before: Row, last: Row, cost: str) -> float:
    return math.log(last[cost] / before[cost]) / math.log(last["images"] / before["images"])


def _check_room(folder: Path, images: int) -> None:
    needed, free = images * SAMPLE_BYTES * 1.1, shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{folder}: expected {needed / 2**30:.1f} GiB free for {images} images, found {free / 2**30:.1f}"
        )
