"""Signals that stop a run: what the first does, when the second ends the process, and what torchrun adds."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from deit_fast.runtime.stopping import StopSignal, is_second_interrupt
from tests.conftest import ROOT

INT, TERM, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1


@pytest.mark.parametrize(
    ("seen", "alone", "under_torchrun"),
    [
        ([INT], False, False),
        ([INT, INT], True, False),  # torchrun passes a terminal's first one on
        ([INT, INT, INT], True, True),
        ([INT, TERM], False, True),  # torchrun's answer to the second
        ([INT, INT, INT, TERM], True, True),
        ([TERM, TERM], False, False),  # of a scheduler, and passed on
        ([TERM, INT], False, False),
        ([USR1, TERM, USR1], False, False),
    ],
)
def test_which_is_the_second(seen: list[int], alone: bool, under_torchrun: bool) -> None:
    assert is_second_interrupt(seen, False) == alone
    assert is_second_interrupt(seen, True) == under_torchrun


def test_the_first_is_noted_once_there_is_something_to_save() -> None:
    before = signal.getsignal(INT)
    with StopSignal() as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), INT)
        assert (stop.received, stop.interrupted) == (True, True)
    with StopSignal() as stop:
        stop.saves = True
        os.kill(os.getpid(), INT)
        assert (stop.received, stop.interrupted) == (True, True)
    with StopSignal() as stop:
        os.kill(os.getpid(), TERM)
        assert (stop.received, stop.interrupted) == (True, False)
    assert signal.getsignal(INT) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_in_another_thread_nobody_asks_for_signals() -> None:
    seen = []

    def enter() -> None:
        with StopSignal() as stop:
            seen.append(stop.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]


# A mutex that is locked twice: a wait in C that no signal ends.
STUCK = """
import ctypes, sys
from deit_fast.runtime.stopping import StopSignal
libc = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)
with StopSignal() as stop:
    stop.saves = True
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
"""


def test_the_second_ends_a_process_that_is_stuck() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(INT)
    assert "as soon as a step is done" in process.stderr.readline()  # so that the next is a second one
    process.send_signal(INT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr == (
        "deit-fast: ended at once, without another checkpoint; run the same command again to go on from the last\n"
    )
