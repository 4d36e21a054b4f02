"""Progress as a user sees it: a bar on a real terminal, lines in a log file, nothing where another process reports."""

import os
import pty
import subprocess
import sys
import termios

import pytest

from tests.conftest import ROOT

COUNT = """
from deit_fast.runtime import progress
progress.LINE_SECONDS = -1
with progress.Progress(9, "work", start=3, unit="step", show={show}) as bar:
    for number in range(2):
        bar.update(2)
        bar.write(f"line {{number}}")
"""


def count(stderr: int, show: bool = True) -> subprocess.CompletedProcess[str]:
    code = COUNT.format(show=show)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr, text=True,
                          env=environment, check=True)  # fmt: skip


@pytest.mark.parametrize(
    ("show", "said"),
    [(True, ["work: 5 of 9", "work: 7 of 9"]), (False, [])],
    ids=["reports", "another-reports"],
)
def test_a_log_file_gets_lines(show: bool, said: list[str]) -> None:
    done = count(subprocess.PIPE, show)
    assert done.stderr.splitlines() == said
    assert done.stdout == "line 0\nline 1\n"


def test_a_terminal_gets_a_bar_and_the_lines_stay_apart() -> None:
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))
    done = count(end)
    drawn = os.read(terminal, 65536)  # before the other end is closed, after which not every kernel keeps it
    for descriptor in (terminal, end):
        os.close(descriptor)
    assert done.stdout == "line 0\nline 1\n"
    assert b"work:" in drawn
    assert b"3/9" in drawn
    assert b"step" in drawn
    assert b"line" not in drawn
    assert drawn.endswith(b"\r"), "the bar is taken away"


def test_bytes_are_counted_in_mib() -> None:
    code = COUNT.replace("Progress(9", "Progress(9 << 20").replace("start=3", "start=3 << 20").replace('"step"', '"B"')
    code = code.replace("update(2)", "update(2 << 20)").format(show=True)
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))
    said = []
    for stderr in (subprocess.PIPE, end):
        said.append(subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=stderr, text=True, check=True).stderr)
    drawn = os.read(terminal, 65536)
    for descriptor in (terminal, end):
        os.close(descriptor)
    assert said[0].splitlines() == ["work: 5 of 9 MiB", "work: 7 of 9 MiB"]
    assert b"3.00M/9.00M" in drawn
    assert b"B/s" in drawn
