"""Steps that are not finite: skipped on every process, counted, and the end of the run that names where it began."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import deit_fast.training.objective
from deit_fast.data.loader.batches import Batch
from deit_fast.data.loader.sampler import build_order, build_samplers
from deit_fast.data.sources.open import open_source
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError, StoppedError
from deit_fast.runtime.log_sinks.json_lines import read_metrics
from deit_fast.runtime.world import join_world
from deit_fast.training import guards
from deit_fast.training.guards import check_interval
from deit_fast.training.job import plan_job
from deit_fast.training.objective import BatchBuilder, MicroBatch
from deit_fast.training.run import train
from deit_fast.training.start import build_loader
from tests.conftest import ROOT
from tests.training.test_train import WORDS, environment

LIMIT = ["run.nonfinite_limit=3", "run.log_every=50", "run.eval_every=100", "model.drop_path=0"]

# The command line, with a lambda that is no number in some steps of one process.
SCRIPT = """
import os, sys
from deit_fast.cli.main import main
from deit_fast.training.objective import BatchBuilder

build = BatchBuilder.__call__

def poisoned(self, batch):
    made = build(self, batch)
    if os.environ["RANK"] == "{rank}" and batch.step in {steps}:
        made.mixing.lam.fill_(float("nan"))
    return made

if __name__ == "__main__":
    BatchBuilder.__call__ = poisoned
    sys.exit(main(sys.argv[1:]))
"""


def poison(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    build = BatchBuilder.__call__

    def poisoned(self: BatchBuilder, batch: Batch) -> MicroBatch:
        made = build(self, batch)
        if batch.step in steps:
            made.mixing.lam.fill_(float("nan"))
        return made

    monkeypatch.setattr(BatchBuilder, "__call__", poisoned)


def names_of(data: Path, recipe: Recipe, step: int, rank: int = 0, world_size: int = 1) -> list[str]:
    source = open_source(str(data), "train")
    samplers = build_samplers(recipe, build_order(recipe, source), rank, world_size)
    indices = np.concatenate([sampler.batch(step).indices for sampler in samplers])
    return [source.name(int(index)) for index in indices]


def listed(out: Path) -> list[str]:
    return (out / "nonfinite.txt").read_text().splitlines()


def steps_with_checkpoints(out: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*.pt"))


def run_two(data: Path, out: Path, rank: int, steps: range, *words: str) -> subprocess.CompletedProcess[str]:
    script = out.with_suffix(".py")
    script.write_text(SCRIPT.format(rank=rank, steps=steps))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, str(script), "train", "demo_pretrain", "--data", str(data), "--out", str(out)]
    return subprocess.run([*command, *WORDS, *LIMIT, *words], env=environment(), capture_output=True, text=True)


@pytest.mark.parametrize("words", [[], ["run.accumulation=2"]])
def test_it_stops_with_the_first_step_and_its_images(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    recipe = get_recipe("demo_pretrain", [*WORDS, *LIMIT, *words])
    poison(monkeypatch, range(4, 100))
    message = (
        r"^step 5: the loss on rank 0 was not finite, and 5 steps in a row were skipped \(run\.nonfinite_limit=3, "
        r"looked at every 3 steps\); learning rate of that step 0\.00667, optim\.max_grad_norm=1, computed in fp32; "
        r"what to turn: docs/training\.md, 'A loss that is not finite'; images of that step: .*nonfinite\.txt$"
    )
    with pytest.raises(RunError, match=message):
        train(recipe, str(folder_data), tmp_path / "run")
    expected = names_of(folder_data, recipe, 4)
    assert listed(tmp_path / "run") == ["# step 5, epoch 0.8333, run.seed=0", *expected]
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert "## A loss that is not finite\n" in (ROOT / "docs" / "training.md").read_text()


@pytest.mark.filterwarnings("error:.*encountered in:RuntimeWarning")
def test_a_run_that_diverges_ends_the_same_way_however_often_it_is_started(
    folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last checkpoint is one from before the streak, and the metrics show what led to it."""
    words = [*WORDS, "optim.name=sgd", "optim.lr=300", "optim.max_grad_norm=null", "run.checkpoint_every=2",
             "run.nonfinite_limit=7", "run.log_every=50", "run.eval_every=100", "schedule.epochs=20"]  # fmt: skip
    out, ends = tmp_path / "run", []
    for _ in range(3):
        with pytest.raises(RunError, match="the loss on rank 0 was not finite, and") as caught:
            train(get_recipe("demo_pretrain", words), str(folder_data), out)
        ends.append((str(caught.value), listed(out), steps_with_checkpoints(out)))
    assert ends[0] == ends[1] == ends[2]
    first = int(re.match(r"step (\d+):", ends[0][0])[1])
    assert first > 2
    kept = ends[0][2]
    assert kept == list(range(2, first, 2))[-2:]
    assert listed(out)[0].startswith(f"# step {first}, ")
    assert listed(out)[1:] == names_of(folder_data, get_recipe("demo_pretrain", words), first - 1)
    records = [record for record in read_metrics(out / "metrics.jsonl") if record["kind"] == "train"]
    assert records[-1]["step"] == first + records[-1]["skipped"] - 1
    assert records[-1]["skipped"] >= 7
    assert (out / "curves.png").exists()
    assert f"resumed from {out}/checkpoints/step-{kept[-1]:07}.pt" in capsys.readouterr().out


def test_a_signal_amid_skipped_steps_leaves_the_checkpoint_before(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = get_recipe("demo_pretrain", [*WORDS, *LIMIT, "run.nonfinite_limit=20", "run.checkpoint_every=2"])
    build = BatchBuilder.__call__

    def poisoned(self: BatchBuilder, batch: Batch) -> MicroBatch:
        made = build(self, batch)
        if batch.step >= 4:
            made.mixing.lam.fill_(float("nan"))
        if batch.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return made

    monkeypatch.setattr(BatchBuilder, "__call__", poisoned)
    with pytest.raises(StoppedError, match="stopped by a signal at step 7"):
        train(recipe, str(folder_data), tmp_path / "run")
    assert "step 7 was skipped: the checkpoint before it stays the last" in capsys.readouterr().out.splitlines()
    assert steps_with_checkpoints(tmp_path / "run") == [2, 4]


def test_the_last_step_has_a_checkpoint_even_if_it_was_skipped(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, range(22, 24))
    words = [*WORDS, *LIMIT, "run.log_every=10"]
    result = train(get_recipe("demo_pretrain", words), str(folder_data), tmp_path / "run")
    assert (result["step"], result["skipped"]) == (24, 2)
    assert steps_with_checkpoints(tmp_path / "run") == [24]
    told = [line for line in capsys.readouterr().out.splitlines() if "skipped," in line]
    assert told == [
        "step 24: 2 of the last 4 steps skipped, loss or gradient was not finite "
        "(run.nonfinite_limit=3 in a row end the run)"
    ]


def test_the_images_and_draws_of_a_step_again(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines in the docstring of guards.py."""
    words = [*WORDS, *LIMIT]
    build, made = BatchBuilder.__call__, {}

    def kept(self: BatchBuilder, batch: Batch) -> MicroBatch:
        made[batch.step] = build(self, batch)
        return made[batch.step]

    with monkeypatch.context() as patched:
        patched.setattr(BatchBuilder, "__call__", kept)
        train(get_recipe("demo_pretrain", words), str(folder_data), tmp_path / "run")
    lines = inspect.getdoc(guards).partition("recipe.json:\n\n")[2].splitlines()
    assert len(lines) == 3
    names = {"recipe": get_recipe(str(tmp_path / "run" / "recipe.json")), "data": str(folder_data), "N": 9,
             "out": tmp_path / "run", "plan_job": plan_job, "open_source": open_source, "join_world": join_world,
             "build_loader": build_loader, "BatchBuilder": BatchBuilder}  # fmt: skip
    exec(textwrap.dedent("\n".join(lines)), names)
    names["loader"].close()
    again, before = names["batch"], made[8]
    assert torch.equal(again.images, before.images)
    assert torch.equal(again.labels, before.labels)
    assert all(torch.equal(*pair) for pair in zip(again.mixing, before.mixing, strict=True))


def test_a_substitute_is_named_and_not_the_image_it_replaces(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = get_recipe("demo_pretrain", [*WORDS, *LIMIT, "data.max_bad=0.05"])
    shutil.copytree(folder_data, tmp_path / "data")
    planned = names_of(tmp_path / "data", recipe, 4)
    Path(planned[2]).write_bytes(b"")
    poison(monkeypatch, range(4, 100))
    with pytest.raises(RunError, match="step 5"):
        train(recipe, str(tmp_path / "data"), tmp_path / "run")
    named = listed(tmp_path / "run")[1:]
    assert set(planned) - set(named) == {planned[2]}
    assert len(set(named) - set(planned)) == 1 or len(named) == 15  # another image, or one that is in the batch already


def test_a_gradient_alone_is_told_apart(folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
            return grad * float("inf")

    plain = deit_fast.training.objective.Objective.forward
    monkeypatch.setattr(deit_fast.training.objective.Objective, "forward", lambda *inputs: Spoilt.apply(plain(*inputs)))
    with pytest.raises(RunError, match="step 1: the gradient, though no loss, was not finite"):
        train(get_recipe("demo_pretrain", [*WORDS, *LIMIT]), str(folder_data), tmp_path / "run")


def test_a_run_that_recovers_goes_on(folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, range(4, 6))
    result = train(get_recipe("demo_pretrain", [*WORDS, *LIMIT]), str(folder_data), tmp_path / "run")
    assert (result["step"], result["skipped"]) == (24, 2)


def test_the_check_comes_often_enough() -> None:
    for log_every, limit, expected in ((50, 20, 20), (5, 20, 5), (50, 100, 50)):
        run = get_recipe("demo_pretrain", [f"run.log_every={log_every}", f"run.nonfinite_limit={limit}"]).run
        assert check_interval(run) == expected


def test_two_processes_skip_together(folder_data: Path, tmp_path: Path) -> None:
    recovered = run_two(folder_data, tmp_path / "recovers", 1, range(4, 6), "schedule.epochs=2")
    assert recovered.returncode == 0, recovered.stderr
    result = json.loads((tmp_path / "recovers" / "result.json").read_text())
    assert (result["step"], result["skipped"]) == (12, 2)
    assert result["loss"] < 1.2


def test_two_processes_stop_together(folder_data: Path, tmp_path: Path) -> None:
    """One process's loss is not finite: both end, with its images and not the other's, and the checkpoints before."""
    stopped = run_two(folder_data, tmp_path / "stops", 1, range(4, 100), "run.checkpoint_every=1")
    assert steps_with_checkpoints(tmp_path / "stops") == [3, 4]
    assert stopped.returncode == 1
    told = re.findall(r"deit-fast: rank (\d): (step 5: the loss on rank 1 was not finite.*)", stopped.stderr)
    assert sorted(rank for rank, _ in told) == ["0", "1"], stopped.stderr
    assert told[0][1] == told[1][1]
    recipe = get_recipe("demo_pretrain", [*WORDS, *LIMIT])
    expected = names_of(folder_data, recipe, 4, rank=1, world_size=2)
    assert listed(tmp_path / "stops")[1:] == expected
    assert set(expected) < set(names_of(folder_data, recipe, 4))
