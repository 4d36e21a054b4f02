"""A process that hangs ends itself, says where, and the run goes on from its checkpoint."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from deit_fast.runtime.exit_status import ExitStatus
from deit_fast.runtime.watchdog import Watchdog
from tests.training.test_train import environment

HANG = """
import io, sys, time
from pathlib import Path
from deit_fast.runtime.watchdog import Watchdog

def stuck_here():
    {stuck}

sys.stderr = io.StringIO()  # as notebooks and pytest do: it has no descriptor
with Watchdog(Path(sys.argv[1]), 3, 0.5) as watchdog:
    for step in range(8):
        watchdog.beat(f"step {{step}}")
        time.sleep(0.1)
    stuck_here()
"""
# Python's own code, which lets other threads run, and a call that keeps the interpreter's lock for good.
STUCK = {"sleep": "time.sleep(60)", "lock": "import re; re.match(r'(a+)+$', 'a' * 64 + 'b')"}


@pytest.mark.parametrize("kind", STUCK)
def test_a_hang_ends_the_process(tmp_path: Path, kind: str) -> None:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HANG.format(stuck=STUCK[kind]), str(tmp_path)], env=environment(),
                          capture_output=True, text=True, timeout=50)  # fmt: skip
    assert time.monotonic() - started < 30
    assert "stuck_here" in (done.stderr if kind == "lock" else (tmp_path / "hang-3.txt").read_text())
    if kind == "sleep":
        assert done.returncode == ExitStatus.HUNG
        line, end = done.stderr.split("\n")
        assert line.startswith("deit-fast: rank 3: no sign of life for ")
        assert "at step 7 (run.hang_timeout=0.5); the stacks are in " in line
        assert end == ""
    else:
        assert done.returncode == 1


def test_signs_of_life_and_the_end_keep_it_quiet(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0, 2.0) as watchdog:
        time.sleep(2.5)  # the start has longer
        for _ in range(10):
            watchdog.beat("here")
            time.sleep(0.25)
        watchdog.beat("a slow one", allowance=60)
        time.sleep(2.5)
        watchdog.beat("the end")
    time.sleep(2.5)
    assert list(tmp_path.iterdir()) == []
