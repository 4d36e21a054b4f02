"""Two processes, whose gradients are averaged: the step of one process with the whole batch, for every objective."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.world import World
from deit_fast.training.objective import MicroBatch
from deit_fast.training.prepare import build_state, prepare
from tests.training.test_objective import distilled_model, small_teacher
from tests.training.test_step import SMALL, batch
from tests.training.test_train import environment

BCE = ["loss.name=bce", "optim.name=adamw", "optim.eps=1e-3"]  # a larger eps: rounding flips no tiny gradient's sign
KINDS = {
    "plain": BCE,
    "frozen": BCE,  # attention and head only
    "checkpointing": [*BCE, "run.grad_checkpointing=true"],
    "bf16": [*BCE, "run.reduce_dtype=bf16"],
    "accumulation": [*BCE, "run.accumulation=2"],
    # At this rate the subset of 8 or 16 rows is all of them, so that Cosub's passes are the same in both runs.
    "cosub": [*BCE, "loss.cosub=true", "model.drop_path=0.01", "model.drop_path_mode=subset"],
    "distillation": [*BCE, "model.name=deit_tiny_distilled_patch16", "distill.kind=soft"],
}
AUTOCAST = ["run.precision=bf16", "run.reduce_dtype=bf16"]
IN_BF16 = {"autocast": AUTOCAST, "copy": [*AUTOCAST, "run.compute_copy=true"]}


def train(kind: str, world: World) -> dict[str, torch.Tensor]:
    """Weights after three steps over the same global batches, whatever the world."""
    recipe = get_recipe("demo_pretrain", [*SMALL, *(KINDS | IN_BF16)[kind]])
    torch.manual_seed(0)
    model = distilled_model() if kind == "distillation" else build_model(recipe.model)
    if kind == "frozen":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".attn." in name or name.startswith("head."))
    teacher = small_teacher() if kind == "distillation" else None
    dtype = torch.bfloat16 if kind in IN_BF16 else torch.float32
    step = prepare(recipe, build_state(recipe, model), world, dtype, teacher)
    for seed in range(3):
        images, labels, _, _ = batch(seed)
        parts = world.size * recipe.run.passes
        own = range(world.rank * recipe.run.passes, (world.rank + 1) * recipe.run.passes)
        step([MicroBatch(images.chunk(parts)[part], labels.chunk(parts)[part], None) for part in own], 1e-3)
    return {**model.state_dict(), "skipped": step.meter.sums[3]}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of both processes for every kind, from one launch."""
    out = tmp_path_factory.mktemp("ddp")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    done = subprocess.run([sys.executable, *launcher, "tests.training.test_ddp", str(out)], env=environment(),
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(kind: str, together: Path) -> None:
    first, second = (torch.load(together / f"{kind}{rank}.pt") for rank in range(2))
    alone = train(kind, World(0, 1, torch.device("cpu")))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    tolerance = 2e-3 if kind == "bf16" else 2e-5  # 8 bits of the gradient, three steps of 1e-3
    for name, value in alone.items():
        torch.testing.assert_close(
            first[name], value, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
    if kind == "bf16":  # rounded, so the option does something
        assert any(not torch.allclose(first[name], value, rtol=0, atol=2e-6) for name, value in alone.items())
    if kind == "frozen":
        torch.manual_seed(0)
        start = build_model(get_recipe("demo_pretrain", SMALL).model).state_dict()
        moved = {name for name, value in start.items() if not torch.equal(value, first[name])}
        assert moved == {name for name in start if ".attn." in name or name.startswith("head.")}


def test_a_compute_copy_of_several_processes_changes_no_bit(together: Path) -> None:
    """Autocast's gradients are rounded before their average, the copy's were so from the start."""
    results = [torch.load(together / f"{kind}{rank}.pt") for kind in IN_BF16 for rank in range(2)]
    for other in results[1:]:
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


if __name__ == "__main__":
    from deit_fast.runtime.world import join_world, leave_world

    joined = join_world()
    for each in KINDS | IN_BF16:
        torch.save(train(each, joined), Path(sys.argv[1]) / f"{each}{joined.rank}.pt")
    leave_world(joined)
