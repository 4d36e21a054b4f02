"""Sharded weights, on two processes: the step of one process that has them whole, for every optimizer and objective."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from deit_fast.distributed import World
from deit_fast.models.build import build_model
from deit_fast.objective import MicroBatch
from deit_fast.recipes import get_recipe
from deit_fast.sharding import build_mesh
from deit_fast.step import TrainStep, build_state
from tests.test_objective import distilled_model, small_teacher
from tests.test_step import SMALL, batch
from tests.test_train import environment

# A larger eps: rounding flips no tiny gradient's sign.
COMMON = ["run.parallel=fsdp", "loss.name=bce", "optim.eps=1e-3", "optim.ema_decay=0.9"]
ADAMW = [*COMMON, "optim.name=adamw"]
KINDS = {
    "adamw": ADAMW,
    "clipped": [*ADAMW, "optim.max_grad_norm=0.01"],
    "sgd": [*COMMON, "optim.name=sgd"],
    "lamb": [*COMMON, "optim.name=lamb", "optim.layer_decay=0.7", "model.layer_scale=0.5"],
    "thirds": [*COMMON, "optim.name=lamb", "optim.split_qkv=true", "optim.max_grad_norm=null"],
    "accumulation": [*COMMON, "optim.name=lamb", "run.accumulation=2"],
    "frozen": [*ADAMW, "optim.trainable=attention"],
    "checkpointing": [*ADAMW, "run.grad_checkpointing=true"],
    "selective": [*ADAMW, "run.grad_checkpointing=selective"],
    "bf16": [*ADAMW, "run.reduce_dtype=bf16"],
    # At this rate the subset of 8 or 16 rows is all of them, so that Cosub's passes are the same in both runs.
    "cosub": [*ADAMW, "loss.cosub=true", "model.drop_path=0.01", "model.drop_path_mode=subset"],
    "distillation": [*ADAMW, "model.name=deit_tiny_distilled_patch16", "distill.kind=soft"],
}


def train(kind: str, world: World) -> dict[str, Any]:
    """State after three steps over the same global batches, whatever the world; losses, norms and logits besides."""
    recipe = get_recipe("demo_pretrain", [*SMALL, *KINDS[kind]])
    torch.manual_seed(0)
    model = distilled_model() if kind == "distillation" else build_model(recipe.model)
    teacher = small_teacher() if kind == "distillation" else None
    step = TrainStep(recipe, build_state(recipe, model, build_mesh(recipe.run, world)), world, torch.float32, teacher)
    logged, logits = [], []
    for seed in range(3):
        images, labels, _, _ = batch(seed)
        parts = world.size * recipe.run.accumulation
        own = range(world.rank * recipe.run.accumulation, (world.rank + 1) * recipe.run.accumulation)
        step([MicroBatch(images.chunk(parts)[part], labels.chunk(parts)[part], None) for part in own], 1e-2)
        logged.append(world.sum(step.meter.sums.clone()) / world.size)
        with torch.no_grad():
            logits += [step.predictor(each.eval())(images) for each in (step.state.model, step.state.ema)]
    return {"state": step.state.state_dict(), "logged": logged, "logits": logits}


def whole(content: Any) -> Any:
    """Plain tensors in the place of sharded ones."""
    if isinstance(content, dict):
        return {key: whole(value) for key, value in content.items()}
    return content.full_tensor() if isinstance(content, DTensor) else content


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes have after every kind of training, from one launch."""
    out = tmp_path_factory.mktemp("fsdp")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    done = subprocess.run([sys.executable, *launcher, "tests.test_fsdp", str(out)], env=environment(),
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_training_is_the_whole_models(kind: str, together: Path) -> None:
    first, second = (torch.load(together / f"{kind}{rank}.pt") for rank in range(2))
    alone = train(kind, World(0, 1, torch.device("cpu")))
    tolerance = 2e-3 if kind == "bf16" else 2e-5
    for name in ("model", "ema"):
        for key, value in alone["state"][name].items():
            assert torch.equal(first["state"][name][key], second["state"][name][key])
            torch.testing.assert_close(
                first["state"][name][key], value, rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
            )
    for key in ("logged", "logits"):
        torch.testing.assert_close(torch.stack(first[key]) if key == "logged" else first[key], torch.stack(alone[key]) if key == "logged" else alone[key], rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    from deit_fast.distributed import join_world, leave_world

    joined = join_world()
    for each in KINDS:
        found = train(each, joined)
        found["state"] = whole(found["state"])
        torch.save(found, Path(sys.argv[1]) / f"{each}{joined.rank}.pt")
    leave_world()
