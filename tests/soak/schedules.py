"""World sizes that change within an epoch: the same ordered global batches of the same augmented pixels."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from deit_fast.data.loader.batches import Batch, TrainLoader
from deit_fast.data.loader.order import FullOrder
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.open import open_source
from deit_fast.recipe.sections import Augment
from tests.soak.images import write_images
from tests.soak.rounds import Found, rounds

WORLDS = (4, 2, 3, 1)
BATCH, REPEATS, SIZE, STEPS = 24, 3, 16, 9  # 48 views in an epoch: four and a half epochs


def global_batches(source: Source, world: int, start: int, stop: int, first: int | None = None) -> list[str]:
    """A digest of each step's images in the order of their places, including which image is at which place.

    first: the step with which the loaders begin, for the planted bug.
    """
    begin = start if first is None else first
    ranks = []
    for rank in range(world):
        sampler = TrainSampler(FullOrder(len(source), 0), REPEATS, BATCH, world, rank)
        loader = TrainLoader(source, Augment(), SIZE, [sampler], 0, torch.device("cpu"), 1, start_step=begin,
                             stop_step=begin + stop - start)  # fmt: skip
        ranks.append(list(loader))
        loader.close()
    return [digest(parts) for parts in zip(*ranks, strict=True)]


def digest(parts: tuple[Batch, ...]) -> str:
    places = np.concatenate([part.positions for part in parts])
    assert sorted(places) == list(range(BATCH))
    order = np.argsort(places)
    indices = np.concatenate([part.indices for part in parts])[order]
    images = torch.cat([part.images for part in parts])[torch.from_numpy(order)]
    return hashlib.sha256(indices.tobytes() + images.contiguous().numpy().tobytes()).hexdigest()


def schedules(folder: Path, count: int, seed: int, plant: str) -> Found:
    """A round is wrong if a step has other samples or pixels than in one process without interruption.

    Planted bug forgetful: a loader begins with the first step's samples again.
    """
    write_images(folder)
    source = open_source(str(folder), "train")
    expected, rng, wrong = global_batches(source, 1, 0, STEPS), np.random.default_rng(seed), list[str]()
    assert len(set(expected)) == STEPS
    for number in rounds(count, "schedules"):
        worlds = rng.permutation(WORLDS) if number else WORLDS
        cuts = [0, *sorted(rng.choice(np.arange(1, STEPS), len(WORLDS) - 1, replace=False).tolist()), STEPS]
        found: list[str] = []
        for world, start, stop in zip(worlds, cuts[:-1], cuts[1:], strict=True):
            found += global_batches(source, int(world), start, stop, 0 if plant == "forgetful" else None)
        if found != expected:
            steps = [step for step, (mine, theirs) in enumerate(zip(found, expected, strict=True)) if mine != theirs]
            wrong.append(f"worlds {list(worlds)} at steps {cuts}: steps {steps} differ")
    return Found(f"{count} schedules, {REPEATS} views of each image, bad files among them", wrong)
