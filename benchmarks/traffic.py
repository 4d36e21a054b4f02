"""Bytes that a training step moves through a GPU's memory, counted without a GPU for one transformer block.

In a process of its own, Inductor generates the step's kernels for a simulated H100 (fake_gpu.py). The bytes that each
kernel reads and writes are counted (traffic_count.py; for our own kernels kernel_traffic.py). The difference between a
model of two blocks and a model of one block is what one block moves, forward and backward; a third and a fourth block
move the same.
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from deit_fast.runtime.errors import RunError
from deit_fast.runtime.files import write_json
from deit_fast.runtime.hardware import cpu_threads

from .fake_gpu import environment
from .measure import Row, Session
from .workload import find_recipe, parse_model

RECORD = Path(__file__).with_name("traffic.json")
BATCH = 256
SHARE = 0.02
"""Fraction by which a sum may differ from the recorded one for the same torch."""
BLOCKS = (2, 1)
CASES = (
    ("deit3_base_patch16@224",),
    ("deit3_base_patch16@224", "model.drop_path=0"),
    ("deit3_large_patch16@192",),
    ("deit3_huge_patch14@154", "model.drop_path=0.6"),
)
"""The cases in traffic.json: models, with changes of their recipes."""


def run(session: Session, models: list[str] | None, words: list[str], record: bool, assemble: bool) -> bool:
    """One row for each model; returns whether the sums equal the recorded ones, if this torch has a record of the case.

    record: no sum is compared, and the counts become this torch's record. assemble: whether all kernels are assembled
    for sm_90 too; one that spills registers fails.
    """
    cases = [(model, *words) for model in models] if models else [(*case, *words) for case in CASES]
    held = {} if record else read_record()
    session.settings = {"batch": BATCH, "recorded": bool(held)}
    chosen = cases[:1] if session.quick else cases
    # Each count is a process with one thread.
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(min(len(chosen), cpu_threads())) as pool:
        variables = environment(Path(folder))
        session.say(f"compiling {', '.join(map(' '.join, chosen))}")
        counts = [pool.submit(_count, model, changes, variables, held, assemble) for model, *changes in chosen]
        for case, each in zip(chosen, counts, strict=True):
            try:
                session.add(each.result())
            except RunError as error:
                if held or record or models:
                    pool.shutdown(cancel_futures=True)
                    raise
                session.skip(" ".join(case), str(error))  # another torch, whose compiler has changed
    if record:
        sums = {row["case"]: {key: row[key] for key in ("products", "others")} for row in session.rows}
        write_json(RECORD, {"torch": torch.__version__, "gigabytes": sums})
    print(table(session.rows, kernels=models is not None))
    return not any(row["differs"] or row["spills"] for row in session.rows)


def read_record() -> dict[str, dict[str, float]]:
    """The recorded sums by case; empty if they are of another torch."""
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    return dict(found["gigabytes"]) if found["torch"] == torch.__version__ else {}


def table(rows: list[Row], kernels: bool) -> str:
    """The sums of each row as aligned text; with `kernels`, the larger kernels too."""
    lines = [f"{'products and attention':>22} {'others':>7}  GB of a block, forward and backward, batch {BATCH}"]
    for row in rows:
        verdict = f"   DIFFERS: recorded {row['recorded']}" if row["differs"] else ""
        if row["binaries"]:
            verdict += f"   {row['binaries']} binaries of at most {row['registers']} registers"
        verdict += f"   SPILLS: {', '.join(row['spills'])}" if row["spills"] else ""
        lines.append(f"{row['products']:22.3f} {row['others']:7.3f}  {row['case']}{verdict}")
        shown = row["kernels"] if kernels else []
        lines += [
            f"{each['megabytes']:22.0f} MB  {each['times']:g} x {each['name']}"
            for each in shown
            if each["megabytes"] >= 4
        ]
    return "\n".join(lines)


def _count(
    model: str, words: list[str], variables: dict[str, str], held: dict[str, dict[str, float]], assemble: bool
) -> Row:
    recipe = find_recipe(model, BATCH, words)  # reports a mistake before anything is compiled
    options = [model, str(BATCH), *map(str, BLOCKS), *(["--assemble"] if assemble else [])]
    command = [sys.executable, "-m", f"{__package__}.traffic_count", *options, "--", *words]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        (*_, last) = done.stderr.strip().splitlines() or ["nothing"]
        raise RunError(f"traffic: expected torch {torch.__version__} to compile {model} for an H100 ({last[:300]})")
    *lines, more, fewer = (json.loads(line) for line in done.stdout.splitlines()[-3 if assemble else -2 :])
    binaries = lines[0] if assemble else []
    case = " ".join([model, *words])
    sums = {
        key: round((_sum(more, key == "products") - _sum(fewer, key == "products")) / 1e9, 3)
        for key in ("products", "others")
    }
    before = held.get(case)
    return {
        "case": case,
        "model": parse_model(model)[0],
        "resolution": recipe.model.image_size,
        "drop_path": recipe.model.drop_path,
        **sums,
        "recorded": before,
        "differs": before is not None and any(abs(sums[key] / before[key] - 1) > SHARE for key in sums),
        "binaries": len(binaries),
        "registers": max((each["registers"] for each in binaries), default=None),
        "spills": sorted({each["name"] for each in binaries if each["stack"]}),
        "kernels": _difference(fewer, more),
    }


def _sum(kernels: list[dict[str, Any]], product: bool) -> int:
    return sum(each["bytes"] for each in kernels if each["product"] == product)


def _difference(fewer: list[dict[str, Any]], more: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The kernels that one block adds, largest first."""

    def count(kernels: list[dict[str, Any]]) -> Counter[tuple[bool, str, int]]:
        return Counter((each["product"], each["name"], round(each["bytes"] / 1e6)) for each in kernels)

    added = count(more)
    added.subtract(count(fewer))
    return [
        {"name": name, "product": product, "megabytes": megabytes, "times": times}
        for (product, name, megabytes), times in sorted(added.items(), key=lambda each: -abs(each[0][2] * each[1]))
        if times
    ]
