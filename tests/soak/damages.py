"""Damages checkpoints: flips bits, cuts off ends, mixes files of two steps.

Each damage has to be found before loading.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deit_fast.checkpoint import format as checkpoint
from deit_fast.checkpoint.format import link_checkpoint, seal_checkpoint, write_checkpoint
from deit_fast.checkpoint.resume import agree_on_checkpoint
from deit_fast.checkpoint.save import step_path
from deit_fast.runtime.world import World
from tests.soak.rounds import Found, rounds

SUFFIXES = (".pt", ".safetensors", ".sha256")


def content(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {"model": {f"weight{i}": torch.randn(300, generator=generator) for i in range(5)}, "step": step}


def write_checkpoints(folder: Path, steps: tuple[int, ...], best: int | None = None) -> None:
    """Writes the files of a run that saved at these steps."""
    for step in steps:
        path = step_path(folder, step)
        digests = write_checkpoint(path, content(step))
        if step == best:
            link_checkpoint(path, folder / "best.pt", digests)
        seal_checkpoint(path, digests)
        link_checkpoint(path, folder / "last.pt", digests)


def damage(folder: Path, rng: np.random.Generator) -> str:
    """Damages the checkpoint of step 2 in one of many ways; returns the way in words."""
    path = step_path(folder, 2).with_suffix(str(rng.choice(SUFFIXES)))
    data, kind = bytearray(path.read_bytes()), rng.choice(["flip", "cut", "mix", "zero", "append", "remove"])
    at = int(rng.integers(len(data)))
    if kind == "flip":
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[at:]
    elif kind == "zero":
        before = bytes(data)
        data[at : at + 64] = bytes(len(data[at : at + 64]))
        if data == before:
            data[at] = 1
    elif kind == "append":
        data += bytes(1 + at)
    elif kind == "mix":
        data = bytearray(step_path(folder, 1).with_suffix(path.suffix).read_bytes())
    if kind == "remove" and path.suffix != ".sha256":  # without its seal it is no checkpoint
        path.unlink()
    else:
        path.write_bytes(data if kind != "remove" else b"")
    return f"{kind} at {at} of {path.name}"


def damages(folder: Path, count: int, seed: int, plant: str) -> Found:
    """A round is wrong unless the checkpoint before the damaged one is taken, with one line about the damage.

    Planted bug short-hash: checksums cover only the beginning of a file.
    """
    if plant == "short-hash":
        plant_short_hash(setattr)
    rng, missed, alone = np.random.default_rng(seed), list[str](), World(0, 1, torch.device("cpu"))
    write_checkpoints(folder, (1, 2))
    whole = {suffix: step_path(folder, 2).with_suffix(suffix).read_bytes() for suffix in SUFFIXES}
    for _ in rounds(count, "damages"):
        what = damage(folder, rng)
        taken, lines = agree_on_checkpoint(folder, "auto", alone)
        if taken != step_path(folder, 1) or len(lines) != 1 or "step-0000002" not in lines[0]:
            missed.append(f"{what}: {taken}, {lines}")
        for suffix, data in whole.items():  # in place, because last.pt is a link to it
            step_path(folder, 2).with_suffix(suffix).write_bytes(data)
    return Found(f"{count} damaged checkpoints, the one before taken and the damage named in a line", missed)


def plant_short_hash(set_attribute: Callable[[Any, str, Any], None]) -> None:
    """The planted bug: checksums cover only the beginning of a file."""
    short = lambda path: hashlib.sha256(path.read_bytes()[:2048]).hexdigest()  # noqa: E731
    set_attribute(checkpoint, "hash_file", short)
