"""A run with run.compute_copy against the same run without: autocast rounds the weights there, LAMB does here."""

import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from deit_fast.infer.precision import Classifier
from deit_fast.models.build import build_model
from deit_fast.optim.compute_copy import copy_to_compute
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError
from deit_fast.runtime.hardware import has_bf16
from deit_fast.runtime.world import World
from deit_fast.training.objective import MicroBatch
from deit_fast.training.prepare import build_state, check_machine, prepare
from deit_fast.training.run import train as run_recipe
from deit_fast.training.step import TrainStep
from tests.training.test_step import CPU, SMALL, batch, weights

COPY = "run.compute_copy=true"
WORDS = [*SMALL[:-1], "run.precision=bf16", "optim.ema_decay=0.9", "model.drop_path=0.5"]


def make(*words: str, world: World = CPU) -> TrainStep:
    recipe = get_recipe("demo_pretrain", [*WORDS, *words])
    torch.manual_seed(0)
    model = build_model(recipe.model).to(world.device).to(memory_format=torch.channels_last)
    return prepare(recipe, build_state(recipe, model), world, torch.bfloat16)


def train(step: TrainStep, steps: range) -> list[float]:
    """Loss of each step."""
    losses = []
    for index in steps:
        before = step.meter.sums[0].item()
        step([MicroBatch(*(t.to(step.world.device) for t in batch(index % 4, mixed=True)[:2]), None)], 3e-3)
        losses.append(step.meter.sums[0].item() - before)
    return losses


def assert_rounded(step: TrainStep) -> None:
    """The copy is the master rounded, in Linear and Conv2d layers, and the master's own tensor elsewhere."""
    rounded = 0
    assert step.state.compute is not None
    for ours, theirs in zip(step.state.model.modules(), step.state.compute.modules(), strict=True):
        tensors = [[*module.parameters(recurse=False), *module.buffers(recurse=False)] for module in (ours, theirs)]
        for own, other in zip(*tensors, strict=True):
            assert own.dtype != torch.bfloat16
            if isinstance(ours, nn.Linear | nn.Conv2d):
                assert torch.equal(other, own.bfloat16())
                rounded += 1
            else:
                assert other is own
    assert rounded == len(step.state.copies) > 0


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["model.name=deit3_tiny_patch16", "model.stem=hmlp"],
        ["model.name=deit_tiny_distilled_patch16"],
        ["model.name=cait_xxs24_224"],
        ["model.name=resmlp_12_224"],
        ["model.name=patchconvnet_s60"],
    ],
    ids=["vit", "hmlp", "distilled", "cait", "resmlp", "patchconvnet"],
)
@pytest.mark.parametrize("training", [False, True])
def test_logits_and_gradients_are_autocasts_bit_by_bit(words: list[str], training: bool) -> None:
    recipe = get_recipe("demo_pretrain", [*WORDS, "model.image_size=32", *words])
    torch.manual_seed(0)
    model = build_model(recipe.model).train(training)
    for param in model.parameters():  # zeros, as biases begin, would hide what is not rounded
        nn.init.normal_(param, std=0.05)
    compute, copies = copy_to_compute(model)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    results = []
    for each in (model, compute):
        torch.manual_seed(1)
        classifier = Classifier(each, recipe, torch.bfloat16, CPU.device)
        outputs = classifier.run(each, classifier.normalise(images))
        outputs = torch.stack(outputs) if isinstance(outputs, tuple) else outputs
        outputs.float().square().sum().backward()
        own = [p if each is model else copies.get(p, p) for p in model.parameters()]
        results.append((outputs, [p.grad.float() for p in own]))
        each.zero_grad()
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(*pair) for pair in zip(results[0][1], results[1][1], strict=True))
    assert {c.dtype for c in copies.values()} == {torch.bfloat16}
    assert all(ours is theirs for ours, theirs in zip(model.buffers(), compute.buffers(), strict=True))


@pytest.mark.parametrize("words", [[], ["optim.trainable=attention"], ["run.grad_checkpointing=true"]])
def test_thirty_steps_are_those_without(words: list[str]) -> None:
    without, step = make(*words), make(COPY, *words)
    assert train(step, range(30)) == train(without, range(30))
    assert torch.equal(weights(step), weights(without))
    for ours, theirs in zip(step.state.ema.parameters(), without.state.ema.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert_rounded(step)
    assert all(copied.requires_grad == weight.requires_grad for weight, copied in step.state.copies.items())
    assert (weights(step) - weights(make())).abs().max() > 1e-2


def test_the_copy_follows_every_step() -> None:
    step = make(COPY)
    places = [c.data_ptr() for c in step.state.copies.values()]
    assert_rounded(step)
    for index in range(4):
        before = weights(step)
        train(step, range(index, index + 1))
        assert not torch.equal(weights(step), before)
        assert_rounded(step)
        step.state.optimizer.zero_grad(set_to_none=True)
        assert all(p.grad is None for model in (step.state.model, step.state.compute) for p in model.parameters())
    assert [c.data_ptr() for c in step.state.copies.values()] == places


def test_a_skipped_step_leaves_the_copy() -> None:
    step = make(COPY)
    train(step, range(2))
    before = weights(step)
    poisoned = batch(2, mixed=True)
    assert poisoned.mixing is not None
    poisoned.mixing.lam.fill_(float("nan"))
    step([poisoned], 3e-3)
    assert step.meter.skipped_in_a_row.item() == 1
    assert torch.equal(weights(step), before)
    assert_rounded(step)
    train(step, range(3, 4))
    assert not torch.equal(weights(step), before)
    assert_rounded(step)


@pytest.mark.parametrize("words", [[COPY], []], ids=["with", "without"])
def test_resumes_bit_identically_from_fp32_weights(words: list[str]) -> None:
    """The checkpoint knows no copy: a run may also go on without it."""
    through = make(COPY)
    train(through, range(3))
    saved = io.BytesIO()
    torch.save(through.state.state_dict(), saved)
    assert {t.dtype for t in tensors_of(through.state.state_dict())} == {torch.float32}
    train(through, range(3, 6))
    again = make(*words)
    saved.seek(0)
    again.state.load_state_dict(torch.load(saved, weights_only=True))
    if words:
        assert_rounded(again)
    train(again, range(3, 6))
    pairs = zip(tensors_of(again.state.state_dict()), tensors_of(through.state.state_dict()), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def tensors_of(content: object) -> list[Tensor]:
    if isinstance(content, dict | list | tuple):
        return [t for value in (content.values() if isinstance(content, dict) else content) for t in tensors_of(value)]
    return [content] if isinstance(content, Tensor) else []


def test_loaded_weights_reach_the_copy() -> None:
    step, other = make(COPY), make("run.seed=1")
    train(other, range(2))
    step.state.load_weights(other.state.model.state_dict(), other.state.model.state_dict())
    assert torch.equal(weights(step), weights(other))
    assert_rounded(step)


@pytest.mark.skipif(not has_bf16(CPU.device), reason="a run computes in bf16 where the hardware does")
def test_whole_runs_leave_the_same_files(folder_data: Path, tmp_path: Path) -> None:
    words = ["model.image_size=16", "model.num_classes=3", "run.global_batch=16", "schedule.epochs=2",
             "schedule.warmup_epochs=1", "run.precision=bf16"]  # fmt: skip
    found = []
    for name, more in (("with", [COPY]), ("without", [])):
        run_recipe(get_recipe("demo_pretrain", [*words, *more]), str(folder_data), tmp_path / name, str(folder_data))
        found.append(load_file(tmp_path / name / "checkpoints" / "last.safetensors"))
        scores = json.loads((tmp_path / name / "result.json").read_text())
        found[-1]["top1"] = torch.tensor(scores["best_top1"])
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert value.dtype == torch.float32
        assert torch.equal(value, found[1][key])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run.precision=fp32"], "expected run.precision='bf16' or 'auto', got 'fp32'"),
        (["run.accumulation=2"], "expected run.accumulation=1, got 2"),
        (["run.parallel=fsdp"], "expected run.parallel='ddp', got 'fsdp'"),
        (["optim.name=adamw"], "expected optim.name='lamb', got 'adamw'"),
    ],
)
def test_recipes_that_cannot_have_one(words: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        get_recipe("demo_pretrain", [COPY, *words])
    assert str(refused.value) == f"run.compute_copy=true: {said}"


def test_runs_that_cannot_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    run = get_recipe("demo_pretrain", [COPY]).run
    monkeypatch.setattr("deit_fast.infer.precision.has_bf16", lambda device: False)
    with pytest.raises(RecipeError, match=r"run\.compute_copy=true: expected a run that computes in bf16, got torch"):
        check_machine(run, CPU)
    monkeypatch.setattr("deit_fast.infer.precision.has_bf16", lambda device: True)
    with pytest.raises(RecipeError, match=r"compute_copy=true: expected run\.reduce_dtype='bf16' for 2 processes"):
        check_machine(run, World(0, 2, CPU.device))


@pytest.mark.gpu
@pytest.mark.parametrize("words", [["run.compile=off"], ["run.compile=on"]])
def test_on_a_gpu(words: list[str]) -> None:
    gpu = World(0, 1, torch.device("cuda", 0))
    plain, copied = make(*words, world=gpu), make(*words, COPY, world=gpu)
    torch.testing.assert_close(train(copied, range(12)), train(plain, range(12)), rtol=0, atol=0.1)
    assert_rounded(copied)
