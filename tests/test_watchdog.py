"""A process that hangs ends itself, says where, and the run goes on from its checkpoint."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from deit_fast.watchdog import EXIT_HUNG, Watchdog
from tests.test_train import command, environment

HANG = """
import sys, time
from pathlib import Path
from deit_fast.watchdog import Watchdog

def stuck_here():
    {stuck}

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
        assert done.returncode == EXIT_HUNG
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


# A run on two processes, of which the second stops for good: in its loader, or before a collective.
HUNG_RUN = """
import os, sys, time
from deit_fast import cli, train

if os.environ["RANK"] == "1":
    count = [0]
    def after(number, call):
        def called(*rest, **named):
            count[0] += 1
            if count[0] > number:
                time.sleep(600)
            return call(*rest, **named)
        return called
    if sys.argv[1] == "loader":
        from deit_fast.data import folder
        folder.ImageFolder.read = after(150, folder.ImageFolder.read)
    else:
        train.learning_rate = after(9, train.learning_rate)
sys.argv[1:2] = []
sys.exit(cli.main())
"""


@pytest.mark.soak
@pytest.mark.parametrize("where", ["loader", "collective"])
def test_a_hung_process_ends_the_run_and_it_goes_on(folder_data: Path, tmp_path: Path, where: str) -> None:
    out, script = tmp_path / "run", tmp_path / "hung.py"
    script.write_text(HUNG_RUN)
    words = ["run.hang_timeout=5", "run.checkpoint_every=2", "run.log_every=1", "run.eval_every=100"]
    start = command(folder_data, out, *words, processes=2)
    module = start.index("-m", 3)
    hung = [*start[:module], str(script), where, *start[module + 2 :]]
    done = subprocess.run(hung, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "no sign of life for" in done.stderr, done.stderr
    stacks = "".join(path.read_text() for path in out.glob("hang-*.txt"))
    assert "deit_fast/trainer.py" in stacks
    left = subprocess.run(["pgrep", "-f", str(script)], capture_output=True, text=True).stdout
    assert left == "", "a process was left behind"
    again = subprocess.run(start, env=environment(), capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "resumed from" in again.stdout
