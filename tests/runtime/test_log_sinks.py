"""Where figures go: to every sink that is on, from the resumed step on, and past a disk that is full."""

import errno
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deit_fast.runtime.console import Console, Pace
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.log_sinks import LogSink, Sink, chosen_sinks
from deit_fast.runtime.log_sinks.json_lines import read_metrics
from deit_fast.runtime.metrics_log import MetricsLog


class Full(Sink):
    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def console() -> Console:
    return Console(100, 10, 0, Pace(100, lambda step: 0))


def log_of(folder: Path, step: int) -> MetricsLog:
    return MetricsLog(folder, step, chosen_sinks(), console())


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    with log_of(tmp_path, 0) as log:
        for step in (10, 20, 30):
            log.record("train", step, {"loss": 1.0 / step})
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')  # a crash amid a line
    time.sleep(1.0)  # TensorBoard's files are read by name, and two of one second and process by a number, as text
    with log_of(tmp_path, 20) as log:
        log.record("train", 30, {"loss": math.nan})
        log.record("eval", 30, {"top1": 50.0})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"kind": "train", "step": 10, "loss": 0.1},
        {"kind": "train", "step": 20, "loss": 0.05},
        {"kind": "train", "step": 30, "loss": None},
        {"kind": "eval", "step": 30, "top1": 50.0},
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [10, 20, 30]
    assert math.isnan(board.Scalars("train/loss")[-1].value)


def test_pictures_lie_in_the_folder_and_in_tensorboard(tmp_path: Path) -> None:
    with log_of(tmp_path, 0) as log:
        log.images("samples", torch.full((9, 3, 16, 16), 255, dtype=torch.uint8), 0)
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (8 * 18 + 2, 2 * 18 + 2)  # eight in a row, with a frame of two pixels
        assert picture.getpixel((2, 2)) == (255, 255, 255)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Images("samples")] == [0]


def test_a_sink_on_a_full_disk_costs_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sinks = {"full": LogSink(lambda folder, step: Full()), **chosen_sinks()}
    with MetricsLog(tmp_path, 0, sinks, console()) as log:
        log.record("train", 10, {"loss": 0.5})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"kind": "train", "step": 10, "loss": 0.5}]
    assert capsys.readouterr().out == (
        "step 10: not in full (No space left on device)\nepoch  1.00/10  step  10/100  loss 0.500\n"
    )


def test_other_processes_are_mute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsLog(tmp_path, 0, chosen_sinks(), console(), speaks=False) as log:
        log.record("train", 10, {"loss": 0.5})
        log.images("samples", torch.zeros(1, 3, 16, 16, dtype=torch.uint8), 0)
        log.say("a line")
        log.advance()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_a_name_that_no_sink_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIT_FAST_LOG_SINKS", "tensorbord")
    with pytest.raises(RunError, match=r"^DEIT_FAST_LOG_SINKS='tensorbord': expected .*\(did you mean 'tensorboard'"):
        chosen_sinks()
