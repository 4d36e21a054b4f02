"""The launcher ends with the status of the worker that ended the run, whatever torchrun and its other workers do."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deit_fast.runtime.exit_status import STATUS_BOARD, ExitStatus
from deit_fast.runtime.torchrun import describe_end, find_cause, main
from tests.conftest import ROOT

# Workers that end as a rank's words say, without torch, which would take seconds to import.
WORKER = """
import os, signal, sys, time
from deit_fast.runtime.exit_status import report_status

rank = int(os.environ["RANK"])
kind, _, number = sys.argv[1].split(",")[rank].partition("=")
if kind == "status":  # as the command line and the watchdog do
    report_status(int(number))
    os._exit(int(number))
elif kind == "late":  # a peer that the first one's end throws out
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    report_status(int(number))
    os._exit(int(number))
elif kind == "first":
    report_status(int(number))
    open(sys.argv[2], "w").close()
    time.sleep(0.3)
    os._exit(int(number))
elif kind == "kill":
    open(sys.argv[2], "w").close()
    os.kill(os.getpid(), int(number))
elif kind == "mute":
    os._exit(int(number))
elif kind == "stop":  # a training that answers a signal with a checkpoint
    def leave(*_):
        report_status(int(number))
        os._exit(int(number))
    signal.signal(signal.SIGTERM, leave)
    open(sys.argv[2] + str(rank), "w").close()
    time.sleep(60)
"""


def words(folder: Path, ends: str) -> list[str]:
    (folder / "worker.py").write_text(WORKER)
    processes = str(len(ends.split(",")))
    return ["--standalone", "--nproc-per-node", processes, str(folder / "worker.py"), ends, str(folder / "sign")]


@pytest.fixture(autouse=True)
def restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a launcher leaves behind in this process, which would end otherwise."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(STATUS_BOARD, "")
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("ends", "status", "line"),
    [
        ("status=0,status=0", 0, ""),
        ("status=1,mute=0", 1, "rank 0 ended with status 1; the reason is above"),
        # Rank 1 was refused, and rank 0, which heard of it by a lost connection, was seen first.
        ("late=1,first=2", 2, "rank 1 ended the run with status 2 (refused): no other start of the same command"),
        # Killed for its memory: its peer's traceback is no reason.
        ("late=1,kill=9", 137, "rank 1 was ended by SIGKILL; was there too little memory?"),
    ],
)
def test_the_cause_is_the_status(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], ends: str, status: int, line: str
) -> None:
    assert main(words(tmp_path, ends)) == status
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert "".join(told.splitlines()[-1:]).startswith(f"deit-fast: {line}" if line else "")


@pytest.mark.parametrize(
    ("ends", "cause"),
    [
        ([(3, 2), (0, -15), (1, -15)], (3, 2)),
        ([(0, 1), (3, 2)], (3, 2)),
        ([(1, 70), (0, 1)], (1, 70)),
        ([(0, 75), (1, 75), (None, -15)], (0, 75)),
        ([(2, 74), (0, 1), (1, 75)], (2, 74)),
        ([(0, 1), (1, 1)], (0, 1)),
        ([(0, -15), (1, 1), (2, -15)], (1, 1)),
        ([(None, -15)], (None, -15)),
        ([(0, 1), (1, -11)], (1, -11)),
    ],
)
def test_the_first_that_no_other_caused_wins(ends: list[tuple[int | None, int]], cause: tuple[int, int]) -> None:
    assert find_cause(ends) == cause


def test_a_signal_to_the_launcher_ends_with_the_workers_status(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deit_fast.runtime.torchrun", *words(tmp_path, "stop=75,stop=75")]
    process = subprocess.Popen(command, text=True, stderr=subprocess.PIPE)
    while len(list(tmp_path.glob("sign?"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=100)[1]
    assert "Traceback" not in told
    line = r"deit-fast: rank [01] ended the run with status 75 \(stopped\): started again, the run goes on"
    assert re.fullmatch(line, told.splitlines()[-1])
    assert process.returncode == ExitStatus.STOPPED


@pytest.mark.parametrize("status", [ExitStatus.REFUSED, ExitStatus.STORAGE_FAILED])  # the table has the others
def test_slurm_requeues_only_what_another_start_may_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: ExitStatus
) -> None:
    told = tmp_path / "told"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {told}\n')
    (tmp_path / "scontrol").chmod(0o755)
    for name, value in {"SLURM_JOB_ID": "8", "SLURM_HET_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert main(words(tmp_path, f"status={status:d}")) == status
    expected = "update JobId=7 Requeue=0\n" if status == ExitStatus.REFUSED else ""
    assert (told.read_text() if told.exists() else "") == expected


def test_every_status_has_its_line() -> None:
    lines = {describe_end(0, status) for status in ExitStatus}
    assert len(lines) == len(ExitStatus)
    assert describe_end(None, -15) == "torchrun was ended by SIGTERM"
    assert describe_end(2, -11) == "rank 2 was ended by SIGSEGV"


def test_the_table_for_operators_has_every_status() -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [^|]* \| ([^|]*) \| ([^|]*) \|", page, re.M)
    table = {int(status): {slurm, kubernetes} for status, slurm, kubernetes in rows}
    assert table.keys() == set(ExitStatus)
    ended = {status for status, ends in table.items() if ends == {"**ended**"}}
    assert ended == {2, 3, 65, 71, 130} == {int(status) for status in ExitStatus if status.final}


def test_an_interrupt_while_torch_is_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", "deit_fast.runtime.torchrun", "--nnodes", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == ExitStatus.INTERRUPTED
    assert done.stderr == "deit-fast: interrupted before anything was started; run the same command again\n"
