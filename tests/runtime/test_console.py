"""The live line in terminals of several widths, the lines of a log file, and the time that is left."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from deit_fast.runtime.console import Console, Pace
from tests.conftest import ROOT

TRAIN = {"epoch": 0.5, "loss": 2.12345, "lr": 1.25e-3, "grad_norm": 1.5, "images_per_second": 1234.4,
         "data_wait": 0.012, "peak_memory_gib": 11.26, "skipped": 0.0}  # fmt: skip
SCRIPT = f"""
from deit_fast.runtime.console import Console, Pace
console = Console(1144, 26, 0, Pace(1144, lambda step: 3), 71.5)
console.advance(); console.advance()
console.record("train", 2, {TRAIN})
console.advance()
console.record("eval", 3, {{"top1": 72.25, "top5": 90.0, "loss": 1.0}})
console.advance()
console.close()
"""


def on_terminal(columns: int, script: str = SCRIPT) -> list[str]:
    """What a terminal of so many columns shows, line by line, each as it was left when it was last drawn."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("COLUMNS", None)
    streams = {"stdin": slave, "stdout": slave, "stderr": slave}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, **streams) as shown:
        os.close(slave)
        text = b""
        while True:
            try:
                piece = os.read(master, 4096)
            except OSError:  # the other side has been closed
                break
            text += piece
        assert shown.wait(60) == 0, text
    os.close(master)
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text.decode())
    return [each for line in plain.replace("\r\n", "\n").split("\n") for each in line.split("\r") if each.strip()]


@pytest.mark.parametrize("columns", [60, 80, 130, 200])
def test_the_live_line_fits(columns: int) -> None:
    lines = on_terminal(columns)
    live = [line for line in lines if "epoch" in line and "top-1" not in line]
    assert live
    assert all(len(line) <= columns for line in live)
    last = live[-1]
    wanted = {60: ["epoch 0.09/26", "left"], 80: ["epoch 0.09/26", "loss 2.123", "1,234 images/s", "left"],
              130: ["step 4/1,144", "loss 2.123", "lr 1.25e-03", "1,234 images/s", "best 72.25 %", "left"],
              200: ["step 4/1,144", "wait 1 %", "11.3 GiB", "lr 1.25e-03", "best 72.25 %", "left"]}  # fmt: skip
    assert all(word in last for word in wanted[columns]), last
    (scores,) = [line for line in lines if "top-1" in line]
    assert scores.rstrip().endswith("top-1 72.25 %  top-5 90.00 %  loss 1.000  best")


def test_the_last_line_has_the_best_of_the_last_evaluation() -> None:
    script = SCRIPT.replace("console.advance()\nconsole.close()", "console.close()")
    assert script != SCRIPT
    assert "best 72.25 %" in on_terminal(130, script)[-1]


def test_lines_of_a_log_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(1144, 26, 0, Pace(1144, lambda step: 0))
    console.record("train", 50, TRAIN)
    console.record("train", 1100, {**TRAIN, "images_per_second": 987.0, "data_wait": 0.25, "skipped": 3.0})
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "epoch  1.14/26  step    50/1,144  loss 2.123  lr 1.25e-03  gradient 1.50  1,234 images/s   wait 1 %  11.3 GiB"
    )
    assert second.startswith("epoch 25.00/26  step 1,100/1,144  loss")
    assert second.endswith("3 skipped")
    assert first.index("images/s") == second.index("images/s")
    assert first.index("GiB") == second.index("GiB")


def test_top5_of_five_classes_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(30, 3, 0, Pace(30, lambda step: 0), top5=False)
    console.record("eval", 10, {"top1": 50.0, "top5": 100.0, "loss": 1.0})
    assert capsys.readouterr().out == "epoch 1.00/3  step 10/30  top-1 50.00 %  loss 1.000  best\n"


def test_the_best_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(30, 3, 0, Pace(30, lambda step: 0))
    for step, top1 in ((10, 50.0), (20, 40.0), (30, 60.0)):
        console.record("eval", step, {"top1": top1, "loss": 1.0, "ema_top1": 45.0})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "epoch 1.00/3  step 10/30  top-1 50.00 %  loss 1.000",
        "          average's top-1 45.00 %  best",
        "epoch 2.00/3  step 20/30  top-1 40.00 %  loss 1.000",
        "          average's top-1 45.00 %  best so far 50.00 %",
        "epoch 3.00/3  step 30/30  top-1 60.00 %  loss 1.000",
        "          average's top-1 45.00 %  best",
    ]


@pytest.mark.parametrize("epochs", [3, 26, 800])
@pytest.mark.parametrize("more", [{}, {"ema_top1": 82.5}, {"ema_top1": 82.5, "ties": 0.25, "mean_class_top1": 80.123}])
def test_scores_fit_80_columns(epochs: int, more: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(625 * epochs, epochs, 0, Pace(1, lambda step: 0), best=90.0)
    console.record("eval", 625 * epochs, {"top1": 82.25, "top5": 100.0, "loss": 0.125, **more})
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.split()[-5:] == ["best", "so", "far", "90.00", "%"]
    assert all(f"{key} {value:.4g}" in text for key, value in more.items() if key != "ema_top1")


def test_the_time_left_counts_evaluations() -> None:
    pace = Pace(100, lambda step: 2)
    assert pace.left(0) is None
    for second in (0, 50, 51, 52, 53, 54):  # the first steps compile
        pace.step(float(second))
    assert pace.left(6) == 94
    pace.pause(84.0, evaluated=30.0)
    pace.step(85.0)
    assert pace.left(7) == 93 + 2 * 30
