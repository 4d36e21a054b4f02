"""Checkpoints written in a thread: the state of one step, kept by number, and errors that reach the run."""

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deit_fast.checkpoint import save as saving
from deit_fast.checkpoint.format import load_checkpoint, verify_checkpoint
from deit_fast.checkpoint.save import Saver, Snapshot
from deit_fast.checkpoint.state import TrainState
from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError
from deit_fast.training.prepare import build_state

CPU = torch.device("cpu")
RECIPE = get_recipe("demo_pretrain", ["model.name=deit3_nano_patch4", "model.image_size=8", "optim.name=lamb"])
BESIDE = {"recipe": RECIPE.model_dump(mode="json"), "classes": None, "dtype": "torch.float32"}


@pytest.fixture
def state() -> TrainState:
    torch.manual_seed(0)
    return build_state(RECIPE, build_model(RECIPE.model))


@pytest.fixture
def saver(state: TrainState, tmp_path: Path) -> Iterator[Saver]:
    saver = Saver(tmp_path, 2, state, CPU, [])
    yield saver
    saver.finish()


def update(state: TrainState) -> None:
    """A step, without the model: gradients of noise."""
    for group in state.optimizer.param_groups:
        group["lr"].fill_(1e-2 / (1 + state.step))
    for parameter in state.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()
    state.step += 1


def tensors_of(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for child in children for tensor in tensors_of(child)]


def same(one: dict, other: dict) -> bool:
    pairs = [(tensors_of(one[key]), tensors_of(other[key])) for key in ("model", "ema", "optimizer")]
    assert all(len(a) == len(b) > 2 for a, b in pairs)
    return one["step"] == other["step"] and all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def clone(value: object) -> object:
    if isinstance(value, dict):
        return {key: clone(each) for key, each in value.items()}
    if isinstance(value, list):
        return [clone(each) for each in value]
    return value.clone() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "planted: no wait"])
def test_no_later_update_leaks_in(
    state: TrainState, saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """Slow copies and slow writes, with updates meanwhile; without the wait the test has to see the mixture."""
    write, copy = saving.write_checkpoint, Snapshot.copy
    monkeypatch.setattr(saving, "write_checkpoint", lambda *a: (time.sleep(0.2), write(*a))[1])
    monkeypatch.setattr(Snapshot, "copy", lambda self: (time.sleep(0.1), copy(self))[1])
    hooks = state.optimizer._optimizer_step_pre_hooks
    expected = {}
    for _ in range(3):
        update(state)
        expected[state.step] = clone(state.state_dict())
        saver.save(BESIDE)
        assert len(hooks) == 1
        if not waits:
            hooks.clear()
        update(state)
    assert saver.finish() == []
    assert not hooks  # a step with nothing to wait for asks nobody
    for step in (3, 5):
        verify_checkpoint(tmp_path / f"step-000000{step}.pt")
        assert same(load_checkpoint(tmp_path / f"step-000000{step}.pt", CPU), expected[step]) == waits
    assert load_checkpoint(tmp_path / "last.pt", CPU)["step"] == 5


def test_saving_does_not_wait_and_one_is_in_flight(
    state: TrainState, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes, write, writing = threading.Event(), saving.write_checkpoint, []

    def slow(*rest: object) -> object:
        writing.append(rest)
        assert goes.wait(30)
        return write(*rest)

    monkeypatch.setattr(saving, "write_checkpoint", slow)
    update(state)
    saver.save(BESIDE)  # returns while the writer is held
    update(state)
    assert saver.report() == []
    threading.Timer(0.2, goes.set).start()
    saver.save(BESIDE)
    assert goes.is_set()
    assert len(writing) <= 2
    saver.finish()


def test_no_thread_is_left_between_saves(state: TrainState, saver: Saver) -> None:
    """Its team of OpenMP threads would slow the training down."""
    for step in range(2):
        update(state)
        saver.save(BESIDE)
        saver.mark_best(50.0 + step)
        deadline = time.monotonic() + 60
        while saver.report() or any(each.name.startswith("deit-fast-save") for each in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_buffers_are_reused(state: TrainState, saver: Saver) -> None:
    update(state)
    saver.save(BESIDE)
    saver.finish()
    before = [buffer.data_ptr() for buffer in saver._snapshot._buffers]
    update(state)
    saver.save(BESIDE)
    saver.finish()
    assert [buffer.data_ptr() for buffer in saver._snapshot._buffers] == before
    live = {tensor.data_ptr() for tensor in tensors_of(state.state_dict())}
    assert not live & set(before)


def test_the_last_ones_are_kept_and_the_best(state: TrainState, saver: Saver, tmp_path: Path) -> None:
    for name in ("step-0000900.pt", "step-0000900.sha256", "step-0000001.pt"):  # of a run that was started over
        (tmp_path / name).touch()
    for top1 in (50.0, 80.0, None, 70.0, None):
        update(state)
        saver.save(BESIDE)
        if top1 is not None:
            saver.mark_best(top1)
    saver.finish()
    suffixes = (".pt", ".safetensors", ".sha256")
    names = ("best", "last", "step-0000004", "step-0000005")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(n + s for n in names for s in suffixes)
    assert (tmp_path / "last.pt").samefile(tmp_path / "step-0000005.pt")
    best = load_checkpoint(tmp_path / "best.pt", CPU)
    assert (best["step"], state.best_top1) == (2, 80.0)
    assert load_checkpoint(tmp_path / "last.pt", CPU)["best_top1"] == 80.0
    for name in names:
        verify_checkpoint(tmp_path / f"{name}.pt")
    done = subprocess.run(["sha256sum", "--check", "--strict", "last.sha256"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_an_unsealed_checkpoint_is_cleared_away(state: TrainState, tmp_path: Path) -> None:
    for name in ("step-0000003.pt", ".step-0000004.pt.1-2.tmp", "mine.pt"):
        (tmp_path / name).touch()
    Saver(tmp_path, 2, state, CPU, []).finish()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.pt"]


def test_a_failure_is_told_once_and_the_next_save_tries_again(
    state: TrainState, saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(state)
    saver.save(BESIDE)
    saver.mark_best(40.0)
    assert saver.finish() == []

    def full(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        update(state)
        saver.save(BESIDE)
        saver.mark_best(60.0)
        assert state.best_top1 == 60.0
        (line,) = saver.finish()
    assert "No space left" in line
    assert "\n" not in line
    assert state.best_top1 == 40.0  # 60 is not on the disk: 50 has to become the best
    assert saver.finish() == []
    verify_checkpoint(tmp_path / "last.pt")
    assert sorted(path.stem for path in tmp_path.glob("step-*.pt")) == ["step-0000001"]
    update(state)
    saver.save(BESIDE)
    saver.mark_best(50.0)
    assert saver.finish() == []
    assert (load_checkpoint(tmp_path / "best.pt", CPU)["step"], state.best_top1) == (3, 50.0)


def test_other_errors_of_the_thread_are_raised(
    state: TrainState, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "write_checkpoint", lambda *rest: 1 / 0)
    update(state)
    saver.save(BESIDE)
    with pytest.raises(ZeroDivisionError):
        saver.finish()


LIMITED = """
import resource, sys
from tests.checkpoint import test_save as t
from pathlib import Path
import torch
state = t.build_state(t.RECIPE, t.build_model(t.RECIPE.model))
saver = t.Saver(Path(sys.argv[1]), 2, state, t.CPU, [])
for limit in (resource.RLIM_INFINITY, 1 << 20, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    t.update(state)
    saver.save(t.BESIDE)
    print(len(saver.finish()), t.load_checkpoint(Path(sys.argv[1]) / "last.pt", t.CPU)["step"], flush=True)
"""


def test_a_limit_of_the_file_size_ends_no_training(tmp_path: Path) -> None:
    """The kernel's own refusal in the middle of torch's writer, which is C++."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["0 1", "1 1", "0 3"], done.stderr


def test_a_full_disk(state: TrainState, tmp_path: Path) -> None:
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=22m", "none", tmp_path]).returncode:
        pytest.skip("needs root and the right to mount, for a disk of 22 MiB")
    try:
        saver = Saver(tmp_path, 1, state, CPU, [])
        update(state)
        saver.save(BESIDE)
        assert saver.finish() == []
        update(state)
        saver.save(BESIDE)
        (line,) = saver.finish()
        assert line.count("cannot be written") == 1
        verify_checkpoint(tmp_path / "last.pt")
        assert load_checkpoint(tmp_path / "last.pt", CPU)["step"] == 1
        saver.finish()
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_a_folder_that_went_away_is_one_line(state: TrainState, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    saver = Saver(tmp_path / "file" / "checkpoints", 2, state, CPU, [])
    update(state)
    saver.save(BESIDE)
    (line,) = saver.finish()
    assert "cannot be written" in line
    with pytest.raises(RunError):
        verify_checkpoint(tmp_path / "file" / "checkpoints" / "last.pt")
    saver.finish()
