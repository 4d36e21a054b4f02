"""Sharded weights, on two processes: training and checkpoints are those of one process that has them whole."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor.debug import CommDebugMode

from deit_fast.checkpoint.format import load_checkpoint
from deit_fast.checkpoint.resume import kept_steps
from deit_fast.checkpoint.save import Saver, step_path
from deit_fast.checkpoint.state import TrainState
from deit_fast.models.build import build_model
from deit_fast.optim.sharding import gather
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError
from deit_fast.runtime.world import World
from deit_fast.training.objective import MicroBatch
from deit_fast.training.prepare import build_state, prepare
from deit_fast.training.sharding import build_mesh
from deit_fast.training.step import TrainStep
from tests.training.test_objective import distilled_model, small_teacher
from tests.training.test_step import SMALL, batch
from tests.training.test_train import environment

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
COMMON = ["run.parallel=fsdp", "run.compile=off", "loss.name=bce", "optim.ema_decay=0.9"]
# A larger eps: rounding flips no tiny gradient's sign.
ADAMW = [*COMMON, "optim.name=adamw", "optim.eps=1e-3"]
LAMB = [
    *COMMON,
    "optim.name=lamb",
    "optim.eps=1e-3",
    "optim.split_qkv=true",
    "optim.max_grad_norm=0.1",
    "model.layer_scale=0.5",
]
KINDS = {
    "adamw": [*ADAMW, "optim.max_grad_norm=0.1"],
    "sgd": [*COMMON, "optim.name=sgd"],
    "lamb": [*LAMB, "optim.layer_decay=0.7", "run.accumulation=2"],
    "frozen": [*ADAMW, "optim.trainable=attention", "run.grad_checkpointing=selective"],
    "autocast": [*LAMB],
    "bf16": [*ADAMW, "run.reduce_dtype=bf16"],
    # At this rate the subset of 8 or 16 rows is all of them, so that Cosub's passes are the same in both runs.
    "cosub": [*ADAMW, "loss.cosub=true", "model.drop_path=0.01", "model.drop_path_mode=subset"],
    "distillation": [*ADAMW, "model.name=deit_tiny_distilled_patch16", "distill.kind=soft",
                     "run.grad_checkpointing=true"],
}  # fmt: skip
ROUNDED = {"autocast", "bf16"}
SLOW = {"triton": LAMB, "compiled": [*ADAMW, "run.compile=on", "run.grad_checkpointing=selective"]}


def build(kind: str, world: World, seed: int) -> TrainStep:
    recipe = get_recipe("demo_pretrain", [*SMALL, *(KINDS | SLOW)[kind]])
    torch.manual_seed(seed)
    model = distilled_model() if kind == "distillation" else build_model(recipe.model)
    teacher = small_teacher() if kind == "distillation" else None
    dtype = torch.bfloat16 if kind == "autocast" else torch.float32
    step = prepare(recipe, build_state(recipe, model, build_mesh(recipe.run, world)), world, dtype, teacher)
    if kind == "triton" and world.size > 1:
        from deit_fast.optim.lamb_triton import LambKernels

        step.state.optimizer._kernels = LambKernels(CPU)
    return step


def advance(step: TrainStep, seed: int) -> tuple[torch.Tensor, dict[str, int]]:
    """One step over a global batch that is the same in every world; its loss, norm and counts over all processes, and
    how often it called each collective."""
    world, passes = step.world, step.recipe.run.passes
    images, labels, _, _ = batch(seed)
    own = range(world.rank * passes, (world.rank + 1) * passes)
    step.meter.sums.zero_()
    batches = [MicroBatch(images.chunk(world.size * passes)[part], labels.chunk(world.size * passes)[part], None)
               for part in own]  # fmt: skip
    traffic = CommDebugMode()
    with traffic if step.recipe.run.compile == "off" else contextlib.nullcontext():  # torch.compile fails in its hooks
        step(batches, 1e-2)
    counts = {str(name).removeprefix("c10d.").strip("_"): count for name, count in traffic.get_comm_counts().items()}
    return world.sum(step.meter.sums.clone()) / world.size, counts


def save(step: TrainStep, folder: Path) -> None:
    if step.world.is_main:
        saver = Saver(folder, 2, step.state, CPU, kept_steps(folder, 3))
        assert saver.save({"recipe": step.recipe.model_dump(mode="json"), "classes": []}) == []
        assert saver.finish() == []
    else:
        gather(step.state.state_dict())


def held(state: TrainState) -> list[int]:
    """Elements of weights, moments and averages that this process updates."""
    leaves = [leaf for group in state.optimizer.param_groups for leaf in group["params"]]
    moments = [m for values in state.optimizer.state.values() for m in values.values() if m.ndim]
    averages = [state.optimizer.average.of(leaf) for leaf in leaves]
    return [sum(tensor.numel() for tensor in tensors) for tensors in (leaves, moments, averages)]


def train(kind: str, world: World, out: Path) -> None:
    """Three steps, a checkpoint of them in out/kind/size, and what happened in out/kind/size/rank.pt."""
    step = build(kind, world, seed=0)
    logged, scores = [], []
    for seed in range(3):
        values, counts = advance(step, seed)
        logged.append(values)
        with torch.no_grad():
            scores += [step.predictor(model.eval())(batch(9).images) for model in (step.state.model, step.state.ema)]
    folder = out / kind / str(world.size)
    folder.mkdir(parents=True, exist_ok=True)
    save(step, folder)
    torch.save({"logged": torch.stack(logged), "scores": torch.stack(scores), "counts": counts,
                "held": held(step.state)}, folder / f"{world.rank}.pt")  # fmt: skip


def go_on(kind: str, world: World, folder: Path, out: Path) -> None:
    """A fourth step, from the checkpoint in `folder`, and its checkpoint in `out`."""
    step = build(kind, world, seed=1)
    step.state.load_state_dict(load_checkpoint(step_path(folder, 3), CPU))
    advance(step, 3)
    save(step, out)


def launch(kinds: dict[str, Any], out: Path) -> Path:
    """Every kind of training on one process and on two; and each goes on from the other's checkpoint."""
    for kind in kinds:
        train(kind, ALONE, out)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [sys.executable, *launcher, "tests.training.test_fsdp", str(out), *kinds]
    interpreted = environment() | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, env=interpreted, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(KINDS, tmp_path_factory.mktemp("fsdp"))


def assert_same(first: dict[str, Any], second: dict[str, Any], tolerance: float) -> None:
    for name in ("model", "ema"):
        assert first[name].keys() == second[name].keys()
        for key, value in first[name].items():
            difference = (value - second[name][key]).abs().max().item()
            assert difference <= tolerance, f"{name} {key}: {difference}"
    one, two = first["optimizer"], second["optimizer"]
    assert one["state"].keys() == two["state"].keys()
    for index, values in one["state"].items():
        for key, value in values.items():
            torch.testing.assert_close(two["state"][index][key], value, rtol=1e-2, atol=10 * tolerance)
    assert [set(group) for group in one["param_groups"]] == [set(group) for group in two["param_groups"]]


def check(kind: str, out: Path) -> None:
    tolerance = 2e-3 if kind in ROUNDED else 2e-5
    alone = torch.load(out / kind / "1" / "0.pt")
    ranks = [torch.load(out / kind / "2" / f"{rank}.pt") for rank in range(2)]
    for each in ranks:  # losses, gradient norms; and the scores of a process that gathers what the other updated
        torch.testing.assert_close(each["logged"], alone["logged"], rtol=1e-2 if kind in ROUNDED else 1e-4, atol=0)
        torch.testing.assert_close(each["scores"], alone["scores"], rtol=0, atol=100 * tolerance)
    assert torch.equal(ranks[0]["scores"], ranks[1]["scores"])
    saved = [load_checkpoint(step_path(out / kind / size, 3), CPU) for size in "12"]
    assert_same(*saved, tolerance)
    go_on(kind, ALONE, out / kind / "2", out / kind / "1")
    assert_same(*(load_checkpoint(step_path(out / kind / size, 4), CPU) for size in "12"), tolerance)
    if kind == "bf16":  # rounded, so the option does something
        assert any(not torch.allclose(value, saved[1]["model"][key], rtol=0, atol=2e-6)
                   for key, value in saved[0]["model"].items())  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_two_shards_are_one_model(kind: str, together: Path) -> None:
    check(kind, together)


@pytest.mark.soak
@pytest.mark.parametrize("kind", SLOW)
def test_kernels_and_compiled_blocks_on_shards(kind: str, tmp_path: Path) -> None:
    check(kind, launch({kind: None}, tmp_path))


@pytest.mark.parametrize("kind", ["adamw", "lamb"])
def test_each_process_holds_its_share_alone(kind: str, together: Path) -> None:
    whole, *shares = (torch.load(together / kind / name)["held"] for name in ("1/0.pt", "2/0.pt", "2/1.pt"))
    assert [sum(counts) for counts in zip(*shares, strict=True)] == whole
    assert max(shares[0]) < 0.51 * max(whole)


def test_gradients_are_exchanged_once_a_step(together: Path) -> None:
    """However many passes the step has; and one sum each for the gradient's norm and for all trust ratios."""
    depth = len(build_model(get_recipe("demo_pretrain", SMALL).model).blocks)
    for kind, sums in (("adamw", 1), ("lamb", 2)):
        counts = torch.load(together / kind / "2" / "0.pt")["counts"]
        exchanges = {name: count for name, count in counts.items() if "gather" not in name}
        assert exchanges == {"reduce_scatter_base": depth + 1, "allreduce": sums}


def test_running_statistics_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"run\.parallel='fsdp': expected 'ddp' with model\.stem='hmlp'"):
        get_recipe("demo_pretrain", ["run.parallel=fsdp", "model.stem=hmlp", "model.name=deit3_small_patch16"])


if __name__ == "__main__":
    from deit_fast.runtime.world import join_world, leave_world

    joined, root = join_world(), Path(sys.argv[1])
    for each in sys.argv[2:]:
        train(each, joined, root)
        go_on(each, joined, root / each / "1", root / each / "2")
    leave_world(joined)
