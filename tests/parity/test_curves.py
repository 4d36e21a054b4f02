"""Two hundred steps of each system with its own augmentation, order and random numbers: one mean loss curve.

Ours is `train` as a user calls it, with DALI; the other decodes and augments with PIL and torchvision. Both learn real
photographs (CIFAR-10) from the same initial weights with three seeds. What may differ is chance, whose size the seeds
of one and the same system show: no point of the mean curves may lie further apart than three standard errors.

At this length the targets' draws outweigh what is learned of the images, so errors in targets and rates show and those
in pixels do not: they are for test_steps.py and test_augment_distribution.py.
"""

import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deit_fast.checkpoint.format import save_checkpoint
from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.log_sinks.json_lines import read_metrics
from deit_fast.training.run import train
from tests.oracles.reference import mixing, schedule
from tests.oracles.reference.images import repeated_order, three_augment_chain
from tests.oracles.reference.mixing import draw_mixing
from tests.oracles.reference.training import GpuBatch
from tests.parity.systems import reference_of

pytestmark = pytest.mark.soak

STEPS, BATCH, WINDOW, SEEDS = 200, 64, 20, 3
SHORT = 60  # steps after which an error has shown
SIZE, PEAK, WARMUP = 32, 4e-3, 0.5
IMAGES = 5000
STEPS_PER_EPOCH = IMAGES // 256 * 256 // BATCH
WORDS = (
    "model.name=deit3_nano_patch8", f"model.image_size={SIZE}", "model.layer_scale=null", "data.repeats=3",
    "augment.scale=0.08,1.0", "augment.flip=0.5", "mix.mixup=0.8", "mix.cutmix=1.0", f"mix.group={BATCH}",
    "loss.name=bce", f"optim.lr={PEAK}", f"run.global_batch={BATCH}", f"run.log_every={WINDOW}", "run.precision=fp32",
    "run.compile=off", "run.checkpoint_every=null", f"schedule.epochs={STEPS / STEPS_PER_EPOCH}",
    f"schedule.warmup_epochs={WARMUP}",
)  # fmt: skip


class Runs:
    """Loss curves [STEPS / WINDOW] of both systems, by seed."""

    def __init__(self, shard: Path, folder: Path) -> None:
        self.shard, self.folder = shard, folder
        self.recipe = get_recipe("demo_pretrain", WORDS)
        torch.manual_seed(0)
        self.model = build_model(self.recipe.model)
        self.start = folder / "start.pt"
        save_checkpoint(self.start, {"model": self.model.state_dict(), "recipe": self.recipe.model_dump(mode="json")})
        with tarfile.open(shard) as members:
            content = {member.name: members.extractfile(member).read() for member in members}
        keys = sorted(name.removesuffix(".cls") for name in content if name.endswith(".cls"))
        self.images = [Image.open(io.BytesIO(content[f"{key}.jpg"])).convert("RGB") for key in keys]
        self.labels = np.array([int(content[f"{key}.cls"]) for key in keys])
        assert len(keys) == IMAGES

    def ours(self, seed: int) -> np.ndarray:
        out = self.folder / f"ours{seed}"
        train(self.recipe.override([f"run.seed={seed}"]), str(self.shard), out, init=self.start)
        return np.array([line["loss"] for line in read_metrics(out / "metrics.jsonl") if line["kind"] == "train"])

    def reference(self, seed: int, steps: int = STEPS, lr_factor: float = 1.0) -> np.ndarray:
        random.seed(seed)
        torch.manual_seed(seed)
        draws = np.random.RandomState(seed)
        plain = reference_of(self.recipe, self.model)
        augmented = three_augment_chain(SIZE)
        losses: list[float] = []
        for step in range(steps):
            epoch, at = divmod(step, STEPS_PER_EPOCH)
            chosen = repeated_order(IMAGES, epoch, seed)[at * BATCH : (at + 1) * BATCH]
            views = torch.from_numpy(np.stack([augmented(self.images[index]) for index in chosen])).permute(0, 3, 1, 2)
            batch = GpuBatch(views, torch.from_numpy(self.labels[chosen]), draw_mixing(draws, 0.8, 1.0, SIZE))
            rate = schedule.cosine(step / STEPS_PER_EPOCH, STEPS / STEPS_PER_EPOCH, WARMUP, PEAK)
            losses.append(plain.step([batch], lr_factor * rate))
        return np.array(losses).reshape(-1, WINDOW).mean(axis=1)


@pytest.fixture(scope="module")
def runs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("curves")
    shard = folder / "train-0000.tar"  # away from the validation shards, which nobody needs here
    shard.symlink_to(shared_data / "cifar10" / shard.name)
    return Runs(shard, folder)


@pytest.fixture(scope="module")
def our_curves(runs: Runs) -> np.ndarray:
    return np.stack([runs.ours(seed) for seed in range(SEEDS)])


def separation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distance of two mean curves, in standard errors, at each point. Curves are [SEEDS, points].

    The error is pooled over systems and points: three seeds alone say little about the spread at one of them.
    """
    variance = (first.var(axis=0, ddof=1) + second.var(axis=0, ddof=1)).mean() / 2
    return np.abs(first.mean(axis=0) - second.mean(axis=0)) / np.sqrt(2 * variance / SEEDS)


def test_the_curves_are_one(runs: Runs, our_curves: np.ndarray) -> None:
    theirs = np.stack([runs.reference(seed) for seed in range(SEEDS)])
    apart = separation(our_curves, theirs)
    print("ours", our_curves.mean(0).round(4), "reference", theirs.mean(0).round(4), "apart", apart.round(2), sep="\n")
    assert our_curves.shape == (SEEDS, STEPS // WINDOW)
    assert theirs.mean(axis=0)[-1] < 0.9 * theirs.mean(axis=0)[0]  # they learn
    assert (apart < 3).all()


@pytest.mark.parametrize("planted", ["targets not mixed", "twice the learning rate"])
def test_an_error_shows(runs: Runs, our_curves: np.ndarray, planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    factor = 1.0
    if planted == "targets not mixed":
        monkeypatch.setattr(mixing, "mix_targets", lambda targets, lam: targets)
    else:
        factor = 2.0
    theirs = np.stack([runs.reference(seed, SHORT, factor) for seed in range(SEEDS)])
    apart = separation(our_curves[:, : SHORT // WINDOW], theirs)
    print(planted, apart.round(2))
    assert apart.max() > 4
