"""What is around the step before the loop starts: the trial batch of torch.compile, and a step that needs no other."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from deit_fast.data.sources.open import open_source
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.world import World
from deit_fast.training.job import Job, plan_job
from deit_fast.training.objective import BatchBuilder, MicroBatch
from deit_fast.training.prepare import initial_state, prepare
from deit_fast.training.start import build_loader
from tests.training.test_train import WORDS

CPU = World(0, 1, torch.device("cpu"))
RECIPES = {
    "mixing and erasing": ["augment.erase=0.25", "augment.erase_count=2"],
    "mixing": [],
    "erasing": ["mix.mixup=0", "mix.cutmix=0", "augment.erase=0.5"],
    "cosub": ["loss.name=bce", "loss.cosub=true"],
    "plain, accumulated": ["mix.mixup=0", "mix.cutmix=0", "run.accumulation=2"],
}


def plan(data: Path, out: Path, *words: str) -> Job:
    return plan_job(get_recipe("demo_pretrain", [*WORDS, *words]), open_source(str(data), "train"), None, out, CPU)


def first_batch(job: Job) -> MicroBatch:
    loader = build_loader(job, start=0)
    try:
        return BatchBuilder(job.recipe, CPU.device)(next(iter(loader)))
    finally:
        loader.close()


def layout(value: Any) -> Any:
    """What torch.compile would compile anew for."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.stride()
    return value if value is None else tuple(map(layout, value))


@pytest.mark.parametrize("words", RECIPES.values(), ids=RECIPES)
def test_the_trial_is_laid_out_like_the_loaders_batches(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    job = plan(folder_data, tmp_path, *words, "run.compile=on")
    tried: list[MicroBatch] = []

    def note(module: torch.nn.Module, batch: MicroBatch, device: torch.device) -> None:
        tried.append(batch)

    monkeypatch.setattr("deit_fast.training.prepare.try_gradient", note)
    prepare(job.recipe, initial_state(job.recipe, CPU), CPU, job.dtype)
    assert layout(*tried) == layout(first_batch(job))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on CPUs needs g++, which is not installed")
def test_the_first_batch_compiles_nothing(folder_data: Path, tmp_path: Path) -> None:
    job = plan(folder_data, tmp_path, "augment.erase=0.25", "run.compile=on", "model.drop_path=0")
    state = initial_state(job.recipe, CPU)
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    step = prepare(job.recipe, state, CPU, job.dtype)
    assert step.compiled
    assert all(torch.equal(*pair) for pair in zip(state.model.parameters(), before, strict=True))
    with torch._dynamo.config.patch(error_on_recompile=True):
        step([first_batch(job)], 1e-3)
    assert step.meter.sums[2].item() == 1
