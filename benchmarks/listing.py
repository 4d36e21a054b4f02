"""Opening image folders of 10 thousand images and more: the first time, later, and in eight processes of a node.

The images are hard links to tiny files, in 1,000 class folders. Each figure is measured in a process of its own.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .measure import Row, Session

SIZES = (10_000, 100_000, 1_000_000)
CLASSES = 1000
_LINKS = 60_000  # links to one file; ext4 allows 65,000
_PROCESSES = 8

_OPEN = """
import json, sys, time
from deit_fast.data.sources.identity import identify
from deit_fast.data.sources.open import open_source
open_source(sys.argv[2])
start = time.process_time()
source = open_source(sys.argv[1])
opened = time.process_time()
identify(source)
print(json.dumps({"open": opened - start, "identify": time.process_time() - opened}))
"""
_HOLD = """
import sys
from deit_fast.data.sources.open import open_source
open_source(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
source = open_source(sys.argv[1])
touched = int(source.labels.sum()), [source.name(index) for index in range(0, len(source), 50)][-1]
print("open", flush=True)
sys.stdin.readline()
"""


def run(session: Session, sizes: list[int] | None) -> None:
    """A row for each number of images: CPU seconds, bytes kept per image, and the memory of eight processes."""
    sizes = sizes or ([1000, 4000] if session.quick else list(SIZES))
    for images in sizes:
        if not session.out_of_time(f"{images} images"):
            with tempfile.TemporaryDirectory() as folder:
                session.add(_measure(session, Path(folder), images))
    if len(session.rows) > 1:
        first, last = session.rows[0], session.rows[-1]
        growth = math.log(last["images"] / first["images"])
        for name in ("first_open", "first_identify", "later_open", "later_identify"):
            ratio = last["cpu_seconds"][name] / first["cpu_seconds"][name]
            session.settings[f"exponent_of_{name}"] = round(math.log(ratio) / growth, 2)


def _measure(session: Session, folder: Path, images: int) -> Row:
    root, small = folder / "images", folder / "small"
    session.say(f"{images} images")
    _make(small, 2, 1)
    _make(root, images, min(CLASSES, images // 10))
    time.sleep(2.5)  # a folder that has just changed would be listed again
    environment = {**os.environ, "DEIT_FAST_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", _OPEN, str(root), str(small)]
    first, *later = (
        json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
        for _ in range(1 + session.repeats)
    )
    seconds = {f"first_{name}": value for name, value in first.items()}
    seconds |= {f"later_{name}": sorted(each[name] for each in later)[len(later) // 2] for name in first}
    kept = max(path.stat().st_size for path in (folder / "cache").rglob("*.listing"))
    processes = 2 if session.quick else _PROCESSES
    memory = _memory(root, small, environment, processes) / 1e6
    return {
        "case": f"{images} images",
        "images": images,
        "cpu_seconds": seconds,
        "bytes_an_image": kept / images,
        "processes": processes,
        "mb_of_all_processes": memory,
    }


def _make(root: Path, images: int, classes: int) -> None:
    for number in range(images):
        if number % _LINKS == 0:
            file = root.with_name(f"{root.name}{number}.bin")
            file.write_bytes(b"x" * (1 + number // _LINKS))
        name = f"n{number * classes // images:08}"
        path = f"{root}/{name}/{name}_{number % 100_000:05}.JPEG"
        try:
            os.link(file, path)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path))
            os.link(file, path)


def _memory(root: Path, small: Path, environment: dict[str, str], processes: int) -> int:
    """Bytes (PSS, which counts shared pages proportionally) that opening the folder adds to the processes together."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    command = [sys.executable, "-c", _HOLD, str(root), str(small)]
    workers = [subprocess.Popen(command, **pipes) for _ in range(processes)]
    sums = []
    for word in ("ready", "open"):
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == f"{word}\n"
        sums.append(sum(_pss(worker.pid) for worker in workers))
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
    for worker in workers:
        worker.communicate()
    return sums[1] - sums[0]


def _pss(process: int) -> int:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("Pss:")))
