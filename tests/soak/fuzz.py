"""Damaged images, shards and checkpoints: no crash, no hang, no wrong label, and a name for every replaced image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deit_fast.checkpoint import format as checkpoint
from deit_fast.checkpoint.format import load_checkpoint, verify_checkpoint, write_checkpoint
from deit_fast.convert.detect import load_weights
from deit_fast.data.loader import batches as loader
from deit_fast.data.loader.order import FullOrder
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.sources.shard_listing import Listing
from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError
from tests.hostile import check_shard, check_training
from tests.soak.crashes import equal
from tests.soak.damages import plant_short_hash
from tests.soak.rounds import Found, rounds

CPU = torch.device("cpu")
PER_EPOCH = 24  # damaged images among the 48 of check_training
SUFFIXES = (".pt", ".safetensors", ".sha256")


def images(folder: Path, count: int, seed: int, plant: str) -> Found:
    """Planted bug mislabelled: a substitute keeps the name and label of the image that it replaces."""
    if plant == "mislabelled":

        class Mislabelled(loader.Batch):
            def __init__(self, *fields: Any, **named: Any) -> None:
                super().__init__(*fields, **named)
                planned = TrainSampler(FullOrder(48, 0), 1, len(self.indices)).batch(self.step).indices
                vars(self).update(indices=planned, labels=torch.from_numpy(planned % 3))

        loader.Batch = Mislabelled  # type: ignore[misc]
    damaged, bad, wrong = 0, 0, list[str]()
    for number in rounds(-(-count // PER_EPOCH), "epochs of fuzzed images"):
        try:
            found = check_training(seed + number)
        except Exception as error:
            wrong.append(f"images, seed {seed + number}: {type(error).__name__}: {error}")
            continue
        damaged, bad = damaged + found["damaged"], bad + found["bad"]
    if not wrong and not damaged // 4 < bad < damaged:
        wrong.append(f"images: {bad} of {damaged} substituted is no fair mixture")
    return Found(f"{damaged} fuzzed images: {bad} substituted and named, the rest decoded", wrong)


def shards(folder: Path, count: int, seed: int, plant: str) -> Found:
    """Planted bug shifted: every label is that of the sample before."""
    if plant == "shifted":
        plain = Listing.rows

        def shift(listing: Listing) -> Any:
            rows, folders = plain(listing)
            rows["label"] = np.roll(rows["label"], 1)
            return rows, folders

        Listing.rows = shift  # type: ignore[method-assign]
    refused, wrong = 0, list[str]()
    for number in rounds(count, "fuzzed shards"):
        try:
            refused += check_shard(seed + number, folder)
        except Exception as error:
            wrong.append(f"shard, seed {seed + number}: {type(error).__name__}: {error}")
        for path in folder.iterdir():
            path.unlink()
    return Found(f"{count} fuzzed shards: {refused} refused in a line, the rest with their labels", wrong)


def checkpoints(folder: Path, count: int, seed: int, plant: str) -> Found:
    """Sealed checkpoints verify only if they are unchanged; without a seal, reading fails with one line or succeeds.

    Planted bug short-hash: checksums cover only the beginning of a file.
    """
    if plant == "short-hash":
        plant_short_hash(setattr)
    rng, wrong, refused = np.random.default_rng(seed), list[str](), [0, 0]
    path = folder / "a.pt"
    recipe = get_recipe("demo_pretrain", ["model.image_size=8", "model.num_classes=2"])
    model = build_model(recipe.model).state_dict()
    state = {"model": model, "ema": None, "step": 3, "classes": ["a", "b"], "recipe": recipe.model_dump(mode="json")}
    checkpoint.seal_checkpoint(path, write_checkpoint(path, state))
    whole = {suffix: path.with_suffix(suffix).read_bytes() for suffix in SUFFIXES}
    for number in rounds(count, "fuzzed checkpoints"):
        suffix = SUFFIXES[number % 3]
        file = path.with_suffix(suffix)
        content = mutated(whole[suffix], rng)
        file.write_bytes(content)
        changed = content != whole[suffix]
        what = f"checkpoint {number} of seed {seed}, {suffix}"
        if _one_line(lambda: verify_checkpoint(path), what, wrong) == changed:
            refused[0] += changed
        else:
            wrong.append(f"{what}: {'damage not seen' if changed else 'refused, but whole'}")
        if suffix != ".sha256":
            reads: list[Callable[[], Any]] = [lambda file=file: load_weights(file)]  # type: ignore[misc]
            if suffix == ".pt":
                reads.append(lambda: load_checkpoint(path, CPU))
            for read in reads:
                refused[1] += _one_line(read, what, wrong)
        file.write_bytes(whole[suffix])
    loaded = load_checkpoint(path, CPU)
    if not equal(loaded["model"], dict(model)):
        wrong.append("a whole checkpoint is not what was written")
    return Found(f"{count} fuzzed checkpoints: {refused[0]} refused by their seal, {refused[1]} without one", wrong)


def _one_line(read: Callable[[], Any], what: str, wrong: list[str]) -> bool:
    """Whether reading was refused; anything but one line of RunError is noted as wrong."""
    try:
        read()
    except RunError as error:
        if len(str(error).splitlines()) != 1:
            wrong.append(f"{what}: more than a line: {error!r}")
        return True
    except Exception as error:
        wrong.append(f"{what}: {type(error).__name__}: {error}")
        return True
    return False


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """A copy with bits flipped, or bytes replaced, cut, added, moved or zeroed; mostly in a file's structures."""
    content = bytearray(whole)
    for _ in range(int(rng.integers(1, 4))):
        length, way = len(content), int(rng.integers(6))
        near = [int(rng.integers(length or 1)), int(rng.integers(min(length, 3000) or 1)),
                max(0, length - 1 - int(rng.integers(3000)))]  # fmt: skip
        at = near[int(rng.integers(3))]
        if way == 0:
            content[at : at + 1] = bytes([content[at] ^ 1 << int(rng.integers(8))]) if length else b"x"
        elif way == 1:
            content[at : at + 4] = rng.bytes(4)
        elif way == 2:
            del content[at:]
        elif way == 3:
            content[at:at] = rng.bytes(int(rng.integers(1, 50)))
        elif way == 4:
            del content[at : at + int(rng.integers(1, 600))]
        else:
            content[at : at + 8] = b"\xff" * 7 + b"\x7f"
    return bytes(content)
