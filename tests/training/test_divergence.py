"""Steps that are not finite: skipped on every process, counted, and the end of the run that names where it began."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import deit_fast.training.objective
from deit_fast.data.loader.batches import Batch
from deit_fast.data.loader.sampler import build_samplers
from deit_fast.data.sources.open import open_source
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError
from deit_fast.training.guards import check_interval
from deit_fast.training.objective import BatchBuilder, MicroBatch
from deit_fast.training.run import train
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
    samplers = build_samplers(recipe, len(source), rank, world_size)
    indices = np.concatenate([sampler.batch(step).indices for sampler in samplers])
    return [source.name(int(index)) for index in indices]


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
        r"^step 5: the loss on rank 0 was not finite, nor was a step since: 5 in a row are too many for "
        r"run\.nonfinite_limit=3; its 16 images, (.*) and so on, are in .*nonfinite\.txt$"
    )
    with pytest.raises(RunError, match=message) as caught:
        train(recipe, str(folder_data), tmp_path / "run")
    expected = names_of(folder_data, recipe, 4)
    assert re.search(message, str(caught.value))[1] == ", ".join(expected[:3])
    assert (tmp_path / "run" / "nonfinite.txt").read_text().splitlines() == expected
    assert not (tmp_path / "run" / "checkpoints").exists()


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
    named = (tmp_path / "run" / "nonfinite.txt").read_text().splitlines()
    assert set(planned) - set(named) == {planned[2]}
    assert len(set(named) - set(planned)) == 1 or len(named) == 15  # another image, or one that is in the batch already


def test_a_gradient_alone_is_told_apart(folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

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
    """One process's loss is not finite: both end, with its images and not the other's."""
    stopped = run_two(folder_data, tmp_path / "stops", 1, range(4, 100))
    assert stopped.returncode == 1
    told = re.findall(r"deit-fast: rank (\d): (step 5: the loss on rank 1 was not finite.*)", stopped.stderr)
    assert sorted(rank for rank, _ in told) == ["0", "1"], stopped.stderr
    assert told[0][1] == told[1][1]
    recipe = get_recipe("demo_pretrain", [*WORDS, *LIMIT])
    expected = names_of(folder_data, recipe, 4, rank=1, world_size=2)
    assert (tmp_path / "stops" / "nonfinite.txt").read_text().splitlines() == expected
    assert set(expected) < set(names_of(folder_data, recipe, 4))
