"""Whole runs on small images, as a user starts them: in process where that is enough, as processes where it is not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deit_fast.infer.evaluate import evaluate_checkpoint
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import DataError, RecipeError, RunError
from deit_fast.runtime.log_sinks.json_lines import read_metrics
from deit_fast.training.run import train
from tests.conftest import ROOT

# 96 training images: 6 steps an epoch, 24 in all.
WORDS = ["model.image_size=16", "model.num_classes=3", "run.global_batch=16", "schedule.epochs=4", "optim.lr=1e-2",
         "schedule.warmup_epochs=1", "run.log_every=5", "run.eval_every=2", "model.drop_path=0.1",
         "mix.mixup=0.8", "mix.cutmix=1.0", "mix.group=8", "run.precision=fp32"]  # fmt: skip
STEPS = 24


def command(data: Path, out: Path, *words: str, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, "-m", "deit_fast.cli", "train", "demo_pretrain", "--data", str(data),
            "--out", str(out), *WORDS, *words]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def finished(folder_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(get_recipe("demo_pretrain", WORDS), str(folder_data), out)
    return out


def last_weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / "last.safetensors")


def test_what_a_run_leaves(finished: Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert {
        "recipe.json", "metrics.jsonl", "result.json", "samples.png", "curves.png",
        "checkpoints/last.pt", "checkpoints/last.safetensors", "checkpoints/best.pt", "checkpoints/best.safetensors",
    } <= files  # fmt: skip
    assert get_recipe(str(finished / "recipe.json")) == get_recipe("demo_pretrain", WORDS)

    records = read_metrics(finished / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "eval"] == [12, STEPS]
    logged = [r["step"] for r in records if r["kind"] == "train"]
    assert logged == [5, 10, 12, 15, 20, STEPS]
    for record in (r for r in records if r["kind"] == "train"):
        assert record["images_per_second"] > 0
        assert 0 <= record["data_wait"] <= 1
        assert record["peak_memory_gib"] > 0
        assert record["skipped"] == 0

    board = EventAccumulator(str(finished / "tensorboard")).Reload()
    scalars = {"train/loss", "train/lr", "train/grad_norm", "train/images_per_second", "train/peak_memory_gib",
               "eval/top1", "eval/top5", "eval/ema_top1"}  # fmt: skip
    assert scalars <= set(board.Tags()["scalars"])
    assert "samples" in board.Tags()["images"]

    state = torch.load(finished / "checkpoints" / "last.pt", weights_only=True)
    assert state["step"] == STEPS
    assert state["classes"] == ["class0", "class1", "class2"]


def test_it_learns(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result["top1"] > 80
    assert result["step"] == STEPS


def test_evaluate_repeats_the_runs_own_scores(finished: Path, folder_data: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    for name in ("last.pt", "last.safetensors"):
        scores = evaluate_checkpoint(finished / "checkpoints" / name, str(folder_data))
        assert scores["top1"] == pytest.approx(result["top1"])
        assert scores["loss"] == pytest.approx(result["loss"], rel=1e-5)
        assert scores["images"] == 33
    averaged = evaluate_checkpoint(finished / "checkpoints" / "last.pt", str(folder_data), ema=True)
    assert averaged["top1"] == pytest.approx(result["ema_top1"])
    larger = evaluate_checkpoint(finished / "checkpoints" / "last.pt", str(folder_data), ["model.image_size=24"])
    assert larger["changes"] == ["pos_embed: resampled, 4 x 4 -> 6 x 6"]


def test_a_finished_run_is_left_alone(finished: Path, folder_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "checkpoints" / "last.pt").stat().st_mtime_ns
    again = train(get_recipe("demo_pretrain", WORDS), str(folder_data), finished)
    assert again == json.loads((finished / "result.json").read_text())
    assert "finished already" in capsys.readouterr().out
    assert (finished / "checkpoints" / "last.pt").stat().st_mtime_ns == before


def test_a_run_that_goes_on_with_other_threads_says_so(
    finished: Path,
    folder_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept, before = str(finished / "checkpoints" / "last.pt"), torch.get_num_threads()
    lines = []
    for name, threads in (("same", before), ("other", before + 5)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        train(get_recipe("demo_pretrain", WORDS), str(folder_data), tmp_path / name, resume=kept)
        lines.append([line for line in capsys.readouterr().out.splitlines() if "threads" in line])
    assert lines[0] == []
    (said,) = lines[1]
    assert f"computed with {before} threads before (OMP_NUM_THREADS), with {before + 5} from here on" in said


def test_killed_and_started_again_is_bit_identical(finished: Path, folder_data: Path, tmp_path: Path) -> None:
    """kill -9 while steps run, twice, at whatever point that hits; then the weights of the uninterrupted run."""
    out = tmp_path / "run"
    words = ["run.checkpoint_every=3"]
    for until in (5, 15):
        process = subprocess.Popen(command(folder_data, out, *words), env=environment(), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if any(r["step"] >= until for r in read_metrics(out / "metrics.jsonl")):
                break
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command(folder_data, out, *words), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    expected = last_weights(finished)
    assert all(torch.equal(weight, expected[name]) for name, weight in last_weights(out).items())
    old, new = (torch.load(f / "checkpoints" / "last.pt", weights_only=True) for f in (finished, out))
    assert all(torch.equal(new["ema"][name], weight) for name, weight in old["ema"].items())
    assert new["scores"] == old["scores"]
    steps = [r["step"] for r in read_metrics(out / "metrics.jsonl") if r["kind"] == "train"]
    assert steps == sorted(set(steps)), "a step is in metrics.jsonl twice"


def test_two_processes_see_the_same_batches_and_the_same_losses(folder_data: Path, tmp_path: Path) -> None:
    """Mixup pairs, draws and order are those of the global batch, so only floating point tells the runs apart."""
    words = ["model.drop_path=0", "run.log_every=1", "schedule.epochs=2"]
    for count in (1, 2):
        done = subprocess.run(
            command(folder_data, tmp_path / f"x{count}", *words, processes=count),
            env=environment(), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    curves = [
        [r["loss"] for r in read_metrics(tmp_path / f"x{count}" / "metrics.jsonl") if r["kind"] == "train"]
        for count in (1, 2)
    ]
    assert len(curves[0]) == 12
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    scores = [json.loads((tmp_path / f"x{count}" / "result.json").read_text()) for count in (1, 2)]
    assert scores[1]["loss"] == pytest.approx(scores[0]["loss"], rel=1e-2)
    alone, together = (last_weights(tmp_path / f"x{count}") for count in (1, 2))
    distance = max((together[name] - weight).abs().max() for name, weight in alone.items())
    assert distance < 5e-3


def test_accumulation_is_one_batch(folder_data: Path, tmp_path: Path) -> None:
    words = [*WORDS, "model.drop_path=0", "run.log_every=1", "schedule.epochs=2"]
    train(get_recipe("demo_pretrain", words), str(folder_data), tmp_path / "whole")
    train(get_recipe("demo_pretrain", [*words, "run.accumulation=4"]), str(folder_data), tmp_path / "parts")
    whole, parts = ([r["loss"] for r in read_metrics(tmp_path / n / "metrics.jsonl") if r["kind"] == "train"]
                    for n in ("whole", "parts"))  # fmt: skip
    assert parts == pytest.approx(whole, rel=1e-3)


def test_finetuning_at_another_resolution_says_what_it_changed(
    finished: Path, folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = get_recipe("demo_finetune", [*WORDS, "model.image_size=24", "schedule.epochs=2", "optim.lr=1e-3"])
    init = finished / "checkpoints" / "last.safetensors"
    result = train(recipe, str(folder_data), tmp_path / "run", init=init)
    said = capsys.readouterr().out
    assert "pos_embed  resampled  4 x 4  6 x 6" in said
    assert "a factor of" not in said
    assert result["image_size"] == 24
    assert result["top1"] > 80


def test_another_recipe_in_the_same_folder_is_refused(finished: Path, folder_data: Path) -> None:
    with pytest.raises(RecipeError, match=r"optim\.lr=0\.5: expected 0\.01, with which .*step-0000024\.pt was started"):
        train(get_recipe("demo_pretrain", [*WORDS, "optim.lr=0.5"]), str(folder_data), finished)


def test_two_trainers_in_one_folder_are_refused(folder_data: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another training is at work there"):
            train(get_recipe("demo_pretrain", WORDS), str(folder_data), tmp_path / "run")


def test_data_that_does_not_fit(folder_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.num_classes=10: .* has 3 classes"):
        train(get_recipe("demo_pretrain", [*WORDS, "model.num_classes=10"]), str(folder_data), tmp_path / "a")
    (tmp_path / "c").mkdir()
    for name in ("b", "c"):
        with pytest.raises(RecipeError, match=r"data\.block=2: expected data in shards"):
            train(get_recipe("demo_pretrain", [*WORDS, "data.block=2"]), str(folder_data), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]  # a refusal leaves no folder that it made


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_stops_after_a_checkpoint_and_nothing_is_lost(
    folder_data: Path, tmp_path: Path, processes: int
) -> None:
    """SIGTERM, as a scheduler sends it: a checkpoint, a status that is not 0, and the same weights in the end."""
    out, words = tmp_path / "run", ["schedule.epochs=8", "run.log_every=1", "run.eval_every=100", "model.drop_path=0"]
    straight = command(folder_data, tmp_path / "straight", *words, processes=processes)
    assert subprocess.run(straight, env=environment(), capture_output=True).returncode == 0
    start = command(folder_data, out, *words, processes=processes)
    process = subprocess.Popen(start, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(r["step"] >= 3 for r in read_metrics(out / "metrics.jsonl")):
            break
        time.sleep(0.01)
    assert not (out / "checkpoints").exists(), "the test has to come before the first checkpoint"
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (75 if processes == 1 else 1), stderr  # torchrun has its own status
    assert "stopped by a signal at step" in stderr
    assert (out / "checkpoints" / "last.pt").exists()
    done = subprocess.run(start, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = last_weights(tmp_path / "straight")
    assert all(torch.equal(weight, expected[name]) for name, weight in last_weights(out).items())


def test_a_crash_while_saving_loses_neither_last_nor_best(
    finished: Path, folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import deit_fast.checkpoint.save as module

    def crash(*rest: object) -> None:
        raise KeyboardInterrupt

    recipe, out = get_recipe("demo_pretrain", WORDS), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(module, "seal_checkpoint", crash)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, str(folder_data), out)
    (out / "checkpoints" / ".last.pt.1-2.tmp").touch()
    train(recipe, str(folder_data), out)
    assert not list((out / "checkpoints").glob(".*.tmp"))
    for name in ("last", "best"):
        mine, theirs = (torch.load(f / "checkpoints" / f"{name}.pt", weights_only=True) for f in (out, finished))
        assert (mine["step"], mine["best_top1"]) == (theirs["step"], theirs["best_top1"])
        assert (out / "checkpoints" / f"{name}.safetensors").stat().st_mode & 0o777 == 0o644


def test_starting_over_leaves_no_trace_in_tensorboard(folder_data: Path, tmp_path: Path) -> None:
    recipe = get_recipe("demo_pretrain", [*WORDS, "schedule.epochs=2"])
    for resume in ("auto", "never"):
        train(recipe, str(folder_data), tmp_path / "run", resume=resume)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    steps = [event.step for event in board.Scalars("train/loss")]
    assert steps == [5, 10, 12]
    assert [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"] == steps


def test_evaluation_refuses_classes_the_checkpoint_does_not_have(
    finished: Path, folder_data: Path, tmp_path: Path
) -> None:
    for checkpoint in (finished / "checkpoints" / "last.pt", finished / "checkpoints" / "last.safetensors"):
        with pytest.raises(RecipeError, match=r"model\.num_classes=4: expected 3"):
            evaluate_checkpoint(checkpoint, str(folder_data), ["model.num_classes=4"])
        renamed = tmp_path / checkpoint.suffix
        for name in ("zebra", "class1", "class2"):
            (renamed / name).mkdir(parents=True)
            source = folder_data / "val" / name.replace("zebra", "class0") / "000.jpg"
            (renamed / name / "000.jpg").write_bytes(source.read_bytes())
        with pytest.raises(DataError, match="found 'class1' in the place of 'class0'"):
            evaluate_checkpoint(checkpoint, str(renamed))
        (renamed / "more").mkdir()
        (renamed / "more" / "000.jpg").write_bytes(source.read_bytes())
        with pytest.raises(DataError, match=r"expected the classes of .*, 3 in number, found 4"):
            evaluate_checkpoint(checkpoint, str(renamed))
