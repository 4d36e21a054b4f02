"""Ctrl-C in a run: a checkpoint, one line, status 130, and the weights of the uninterrupted run in the end."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from deit_fast.cli import main as cli
from deit_fast.runtime.log_sinks.json_lines import read_metrics
from deit_fast.runtime.watchdog import Watchdog
from deit_fast.training import loop
from deit_fast.training import run as runs
from tests.training.test_train import WORDS, command, environment, last_weights

# 6 steps an epoch, an evaluation after step 6 and step 12, no checkpoint in between.
SHORT = [*WORDS, "schedule.epochs=2", "run.eval_every=1", "run.log_every=1"]


def start(data: Path, out: Path, *words: str) -> int:
    return cli.main(["train", "demo_pretrain", "--data", str(data), "--out", str(out), *SHORT, *words])


@pytest.fixture(autouse=True)
def pythons_own_handlers() -> Iterator[None]:
    """TorchX's local scheduler, once made by another test, keeps the process's signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def straight(folder_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    assert start(folder_data, out) == 0
    return out


def at_call(number: int, action: Callable[[], object], call: Callable[..., object]) -> Callable[..., object]:
    """`call`, before whose `number`-th call the action is done."""
    left = [number]

    def called(*rest: object, **named: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            action()
        return call(*rest, **named)

    return called


def in_a_step(patch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    patch.setattr(loop, "learning_rate", at_call(4, action, loop.learning_rate))


def in_an_evaluation(patch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    patch.setattr(Watchdog, "beat", beat_with(action, 1))


def in_the_last_evaluation(patch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    patch.setattr(Watchdog, "beat", beat_with(action, 3))  # each is of the model and of its average


def beat_with(action: Callable[[], object], number: int) -> Callable[..., object]:
    beat, left = Watchdog.beat, [number]

    def called(self: Watchdog, now_at: str, allowance: float = 0.0) -> None:
        if now_at == "evaluation" and not allowance:
            left[0] -= 1
            if left[0] == -1:
                action()
        beat(self, now_at, allowance)

    return called


@pytest.mark.parametrize(
    ("number", "when", "step"),
    [
        (signal.SIGINT, in_a_step, 4),
        (signal.SIGINT, in_an_evaluation, 6),
        (signal.SIGTERM, in_the_last_evaluation, 12),
    ],
)
def test_nothing_is_lost(
    straight: Path, folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], number: signal.Signals, when: Callable[..., None], step: int,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        when(patch, lambda: os.kill(os.getpid(), number))
        assert start(folder_data, tmp_path / "run") == (130 if number == signal.SIGINT else 75)
    said = "interrupted, with a checkpoint," if number == signal.SIGINT else "stopped by a signal"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"deit-fast: {tmp_path}/run: {said} at step {step} of 12; run the same command again to go on"
    assert start(folder_data, tmp_path / "run") == 0
    assert f"at step {step} of 12" in capsys.readouterr().out
    expected = last_weights(straight)
    assert all(torch.equal(weight, expected[name]) for name, weight in last_weights(tmp_path / "run").items())
    mine, theirs = (json.loads((out / "result.json").read_text()) for out in (tmp_path / "run", straight))
    assert all(mine[key] == theirs[key] for key in ("step", "top1", "loss", "ema_top1", "best_top1", "skipped"))
    lines = [(each["kind"], each["step"]) for each in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert lines == [(each["kind"], each["step"]) for each in read_metrics(straight / "metrics.jsonl")]


def test_before_the_first_step_there_is_nothing_to_save(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, name in ((runs, "open_source"), (runs, "restore"), (loop, "prepare"), (loop, "build_loader")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, at_call(1, lambda: os.kill(os.getpid(), signal.SIGINT), getattr(module, name)))
            assert start(folder_data, tmp_path / "run") == 130
        assert capsys.readouterr().err.splitlines() == ["deit-fast: interrupted; run the same command again"]
        assert not (tmp_path / "run" / "checkpoints").exists()


def test_starting_over_keeps_the_earlier_run(
    straight: Path, folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert start(folder_data, out, "optim.lr=1e-3", "run.checkpoint_every=4") == 0
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert start(folder_data, out) == 2
    assert "choose another --out, or start over with --resume never" in capsys.readouterr().err
    assert start(folder_data, out, "--resume", "never", "run.checkpoint_every=9999", "schedule.epochs=0") == 2
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    capsys.readouterr()
    assert start(folder_data, out, "--resume", "never") == 0
    assert f"{out}: the earlier run is in {out}/earlier-1 now, whole" in capsys.readouterr().out.splitlines()
    aside = out / "earlier-1"
    moved = {path.relative_to(aside): path.read_bytes() for path in aside.rglob("*") if path.is_file()}
    assert moved == {name: content for name, content in before.items() if name != Path(".lock")}
    expected = last_weights(straight)
    assert all(torch.equal(weight, expected[name]) for name, weight in last_weights(out).items())
    # Back to an earlier step of the run: what came after it is moved aside too.
    assert start(folder_data, out, "--resume", str(out / "checkpoints" / "step-0000006.pt")) == 0
    assert (out / "earlier-2" / "checkpoints" / "step-0000012.pt").exists()
    assert all(torch.equal(weight, expected[name]) for name, weight in last_weights(out).items())
    steps = [each["step"] for each in read_metrics(out / "metrics.jsonl") if each["kind"] == "train"]
    assert steps == list(range(1, 13))


@pytest.mark.soak
@pytest.mark.parametrize("presses", [1, 2])
def test_one_interrupt_reaches_all_processes_of_torchrun(folder_data: Path, tmp_path: Path, presses: int) -> None:
    """A terminal sends SIGINT to the whole group, and torchrun sends its workers another."""
    out, words = tmp_path / "run", ["schedule.epochs=200", "run.log_every=1", "run.eval_every=999"]
    process = subprocess.Popen(
        command(folder_data, out, *words, processes=2), env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not read_metrics(out / "metrics.jsonl"):
        time.sleep(0.01)
    for _ in range(presses):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
    _, stderr = process.communicate()
    said = [line for line in stderr.splitlines() if line.startswith("deit-fast: ")]
    if presses == 1:
        assert (out / "checkpoints" / "last.pt").exists()
        assert len(said) == 1
        assert "interrupted, with a checkpoint, at step" in said[0]
    else:
        assert said == [
            "deit-fast: ended at once, without another checkpoint; run the same command again to go on from the last"
        ]


def test_a_finished_run_that_goes_on_elsewhere_has_its_checkpoint_there(
    straight: Path, folder_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert start(folder_data, out, "--resume", str(straight / "checkpoints" / "best.pt")) == 0
    written = Path(json.loads((out / "result.json").read_text())["checkpoint"])
    assert written == out / "checkpoints" / "last.pt"
    assert last_weights(out).keys() == last_weights(straight).keys()
    shutil.copytree(straight, out / "checkpoints" / "copy")
    kept = out / "checkpoints" / "copy" / "checkpoints" / "last.pt"  # in what is moved aside
    assert start(folder_data, out, "--resume", str(kept)) == 0
    assert written.exists()
    assert (out / "earlier-1" / "checkpoints" / "copy").is_dir()
