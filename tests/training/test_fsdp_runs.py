"""Whole runs with sharded weights: killed, and gone on with by another number of processes that shard or do not."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.log_sinks.json_lines import read_metrics
from deit_fast.training.run import train
from tests.training.test_train import WORDS, command, environment, last_weights

# 96 images: 8 steps an epoch, 40 in all; of each pass a process gets 12, 6 or 4. Without stochastic depth, whose draws
# are the process's own.
RUN = ["run.global_batch=12", "schedule.epochs=5", "run.log_every=1", "run.eval_every=1", "run.checkpoint_every=3",
       "model.drop_path=0", "mix.group=12", "run.compile=off"]  # fmt: skip


def losses(out: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(out / "metrics.jsonl") if r["kind"] == "train"}


def kill(process: subprocess.Popen[bytes]) -> None:
    """At once, with the processes that torchrun started."""
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, workers)):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers):
        time.sleep(0.01)


@pytest.mark.soak
def test_killed_and_resharded(folder_data: Path, tmp_path: Path) -> None:
    """Two processes, one that has all weights, three: each goes on from the checkpoint of the one before, mid-epoch."""
    expected, out = tmp_path / "undisturbed", tmp_path / "run"
    result = train(get_recipe("demo_pretrain", [*WORDS, *RUN]), str(folder_data), expected)
    for processes, parallel, until in ((2, "fsdp", 5), (1, "ddp", 11)):
        words = command(folder_data, out, *RUN, f"run.parallel={parallel}", processes=processes)
        process = subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None and max(losses(out), default=0) < until:
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
        kill(process)
    words = command(folder_data, out, *RUN, "run.parallel=fsdp", "run.profile=true", processes=3)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    # Another order of the images, or another draw, would be another loss from the first step on.
    assert losses(out) == pytest.approx(losses(expected), rel=1e-3)
    assert len(losses(out)) == 40
    for name, weight in last_weights(out).items():
        torch.testing.assert_close(weight, last_weights(expected)[name], rtol=0, atol=2e-3)
    scores = [r for r in read_metrics(out / "metrics.jsonl") if r["kind"] == "eval"]
    assert [record["step"] for record in scores] == [8, 16, 24, 32, 40]
    for key in ("loss", "ema_loss"):
        assert scores[-1][key] == pytest.approx(result[key], rel=1e-2)
    assert (out / "profile" / "summary.txt").exists()
