"""A seed for each use: each moves its own draws and leaves all others where they were."""

from pathlib import Path

import numpy as np
import pytest
import torch

from deit_fast.data.sources.open import open_source
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.world import World
from deit_fast.training.job import plan_job
from deit_fast.training.objective import BatchBuilder
from deit_fast.training.prepare import initial_state, prepare
from deit_fast.training.start import build_loader
from tests.training.test_step import batch
from tests.training.test_train import WORDS

USES = ("init", "order", "mix", "dropout")


def draws(data: Path, out: Path, *words: str) -> dict[str, np.ndarray]:
    """What each use of randomness gives in the first step, whose batch holds every image."""
    fixed = ["run.global_batch=96", "model.dropout=0.3", "mix.group=2", "model.num_classes=5"]
    recipe = get_recipe("demo_pretrain", [*WORDS, *fixed, *words])
    job = plan_job(recipe, open_source(str(data), "train"), None, out, World(0, 1, torch.device("cpu")))
    state = initial_state(recipe, job.world)
    found = {"init": np.concatenate([p.detach().flatten().numpy() for p in state.model.parameters()])}
    found["order"] = job.samplers[0].batch(0).indices
    loader = build_loader(job, start=0)
    try:
        first = next(iter(loader))
    finally:
        loader.close()
    found["augmentation"] = first.images.numpy()[np.argsort(first.indices)]
    mixing = BatchBuilder(recipe, job.world.device)(first).mixing
    found["mix"] = torch.cat([mixing.lam[:, None], mixing.box], dim=1).numpy()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in state.model.parameters():  # the same model, whatever it was initialised with
            parameter.normal_(std=0.05)
    step = prepare(recipe, state, job.world, job.dtype)
    step([batch()], 1e-3)
    found["dropout"] = step.meter.sums.numpy()
    return found


@pytest.mark.parametrize("use", [*USES, "run"])
def test_a_seed_moves_its_own_draws_alone(use: str, folder_data: Path, tmp_path: Path) -> None:
    before = draws(folder_data, tmp_path)
    after = draws(folder_data, tmp_path, "run.seed=7" if use == "run" else f"run.{use}_seed=7")
    moved = {name for name, values in before.items() if not np.array_equal(values, after[name])}
    assert moved == (set(before) if use == "run" else {use})


def test_the_runs_seed_is_each_ones_default(folder_data: Path, tmp_path: Path) -> None:
    both = ["run.seed=7", *(f"run.{use}_seed=0" for use in USES)]
    before, after = draws(folder_data, tmp_path), draws(folder_data, tmp_path, *both)
    assert {name for name, values in before.items() if not np.array_equal(values, after[name])} == {"augmentation"}
