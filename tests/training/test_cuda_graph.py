"""The step as CUDA graphs: on a GPU equal to the step without, and elsewhere what happens around the graphs."""

import copy
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deit_fast.checkpoint.format import load_checkpoint
from deit_fast.checkpoint.save import Saver, Snapshot, step_path
from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError
from deit_fast.runtime.world import World
from deit_fast.training.cuda_graph import EAGER_STEPS, Recorded, record_step
from deit_fast.training.objective import MicroBatch, Mixing
from deit_fast.training.prepare import build_state, check_machine, prepare
from deit_fast.training.step import TrainStep
from tests.training.test_step import SMALL, batch, make, weights

GPU = torch.device("cuda", 0)
RANDOM = ["model.drop_path=0.5", "optim.ema_decay=0.9"]


def on_gpu(micro: MicroBatch) -> MicroBatch:
    assert micro.mixing is not None
    return MicroBatch(micro.images.to(GPU), micro.labels.to(GPU), Mixing(*(part.to(GPU) for part in micro.mixing)))


def build(*words: str) -> TrainStep:
    recipe = get_recipe("demo_pretrain", [*SMALL, *RANDOM, *words])
    torch.manual_seed(0)
    model = build_model(recipe.model).to(GPU).to(memory_format=torch.channels_last)
    return prepare(recipe, build_state(recipe, model), World(0, 1, GPU), torch.float32)


def train(step: TrainStep, steps: range) -> list[float]:
    """Loss of each step; the learning rate changes from step to step, as in a run."""
    losses = []
    for index in steps:
        before = step.meter.sums[0].item()
        step([on_gpu(batch(index, mixed=True))], 1e-2 / (1 + index))
        losses.append(step.meter.sums[0].item() - before)
    return losses


@pytest.mark.gpu
@pytest.mark.parametrize("words", [["run.compile=off"], ["run.compile=on"], ["run.compile=off", "model.dropout=0.2"]])
def test_is_the_step_without(words: list[str]) -> None:
    plain, captured = build(*words), build(*words, "run.cuda_graph=true")
    torch.testing.assert_close(train(captured, range(20)), train(plain, range(20)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights(captured), weights(plain), rtol=1e-3, atol=1e-5)
    averages = [torch.cat([p.flatten() for p in step.state.ema.parameters()]) for step in (captured, plain)]
    torch.testing.assert_close(*averages, rtol=1e-3, atol=1e-5)
    assert captured.meter.sums[2].item() == 20


@pytest.mark.gpu
def test_goes_on_after_evaluation_and_from_a_checkpoint() -> None:
    through = build("run.cuda_graph=true")
    train(through, range(7))
    saved = copy.deepcopy(through.state.state_dict())
    images = on_gpu(batch(0, mixed=True)).images
    with torch.no_grad():
        through.predictor(through.state.model.eval())(images)
    train(through, range(7, 14))
    again = build("run.cuda_graph=true")
    again.state.load_state_dict(saved)
    train(again, range(7, 14))
    torch.testing.assert_close(weights(again), weights(through), rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_a_step_with_a_non_finite_gradient_is_skipped() -> None:
    step = build("run.cuda_graph=true", "run.compile=off")
    train(step, range(8))
    before = weights(step)
    poisoned = on_gpu(batch(8, mixed=True))
    assert poisoned.mixing is not None
    poisoned.mixing.lam.fill_(float("nan"))
    step([poisoned], 1e-2)
    assert torch.equal(weights(step), before)
    assert step.meter.skipped_in_a_row.item() == 1
    assert step.meter.began_here.item()
    train(step, range(9, 10))
    assert not torch.equal(weights(step), before)
    assert step.meter.skipped_in_a_row.item() == 0


def test_the_steps_before_the_recording_are_those_without() -> None:
    """Every batch comes by the same memory, and no gradient of one step reaches the next."""
    (_, plain), (_, step) = make(RANDOM), make(RANDOM)
    seen: list[tuple[int, ...]] = []
    plainly = step.forward_backward

    def watched(batches: list[MicroBatch]) -> Tensor:
        (given,) = batches
        assert given.mixing is not None
        seen.append(tuple(tensor.data_ptr() for tensor in (given.images, given.labels, *given.mixing)))
        assert given.images.is_contiguous(memory_format=torch.channels_last)
        return plainly(batches)

    step.forward_backward = watched  # type: ignore[method-assign]
    record_step(step)
    for index in range(EAGER_STEPS):
        for each in (plain, step):
            each([batch(index, mixed=True)], 1e-2)
    assert torch.equal(weights(step), weights(plain))
    assert torch.equal(step.meter.sums, plain.meter.sums)
    assert len(set(seen)) == 1
    with pytest.raises(ValueError, match="expected"):
        step([batch(0, size=4, mixed=True)], 1e-2)


class Replayed:
    """What a CUDA graph is to the host: the recorded work runs again, and no Python around it does.

    The optimizer's kernels are those of `update`; its `step`, which calls hooks, is Python.
    """

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def replay(self) -> None:
        function, given = self._recorded._function, self._recorded._input
        optimizer = function.__self__.state.optimizer  # type: ignore[attr-defined]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optimizer, "step", torch.no_grad()(optimizer.update))
            self._recorded._result = function(given)


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "planted: no wait"])
def test_a_replayed_update_waits_for_the_checkpoints_copy(
    waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints while eager, at the recording and while replayed, each with a copy that takes its time."""
    monkeypatch.setattr(Recorded, "_record", lambda self: Replayed(self))
    copy_at_once, updated = Snapshot.copy, threading.Event()

    def copy_late(self: Snapshot) -> None:
        updated.wait(10 if not waits else 0.1)  # planted: until the update has gone by
        copy_at_once(self)

    monkeypatch.setattr(Snapshot, "copy", copy_late)
    recipe, step = make(RANDOM)
    record_step(step)
    if not waits:
        step.update._before = lambda: None  # type: ignore[attr-defined]
    saver = Saver(tmp_path, 20, step.state, torch.device("cpu"), [])
    beside = {"recipe": recipe.model_dump(mode="json"), "classes": None, "dtype": "torch.float32"}
    expected = {}
    saves = (2, EAGER_STEPS + 1, EAGER_STEPS + 3) if waits else (EAGER_STEPS + 3,)
    for index in range(EAGER_STEPS + 4):
        if index in saves:
            updated.clear()
            expected[index] = copy.deepcopy(step.state.state_dict())
            assert saver.save(beside) == []
        step([batch(index, mixed=True)], 1e-2)
        updated.set()
    assert saver.close() == []
    for index, state in expected.items():
        saved = load_checkpoint(step_path(tmp_path, index), torch.device("cpu"))
        assert all(torch.equal(saved["model"][name], value) for name, value in state["model"].items()) == waits
        assert all(torch.equal(saved["ema"][name], value) for name, value in state["ema"].items()) == waits


def test_nothing_else_synchronises_while_it_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader is settled right before each of the two recordings, and at no other step."""
    happened: list[str] = []

    def record(self: Recorded) -> Replayed:
        happened.append("recorded")
        return Replayed(self)

    monkeypatch.setattr(Recorded, "_record", record)
    _, step = make(RANDOM)
    record_step(step, lambda: happened.append("settled"))
    for index in range(EAGER_STEPS + 4):
        step([batch(index, mixed=True)], 1e-2)
    assert happened == ["settled", "recorded"] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run.accumulation=2"], "run.cuda_graph=true: expected run.accumulation=1, got 2"),
        (["optim.name=adamw"], "run.cuda_graph=true: expected optim.name='lamb', got 'adamw'"),
    ],
)
def test_a_recipe_that_no_graph_can_hold(words: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        get_recipe("demo_pretrain", ["run.cuda_graph=true", *words])
    assert str(refused.value) == said


def test_refuses_other_devices_and_several_processes() -> None:
    run = get_recipe("demo_pretrain", ["run.cuda_graph=true", "run.precision=fp32"]).run
    with pytest.raises(RecipeError, match=r"run\.cuda_graph=true: expected an NVIDIA GPU, got cpu"):
        check_machine(run, World(0, 1, torch.device("cpu")))
    with pytest.raises(RecipeError, match=r"run\.cuda_graph=true: expected one process, got 8"):
        check_machine(run, World(0, 8, GPU))
