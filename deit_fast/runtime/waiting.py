"""How torch's threads wait for each other on a CPU: spinning on a quiet machine, asleep on a busy one.

An OpenMP thread that finishes before the others spins for some milliseconds, because it can then start its next task
sooner than if the kernel woke it. On a busy machine the thread that it waits for has no core, and spinning wastes the
process's share of the cores. libgomp, the OpenMP in torch's wheels, hardly spins while a process has more OpenMP
threads than cores (its manual, GOMP_SPINCOUNT). This module therefore adds and removes idle threads while the process
runs. The number of threads that share an operation does not change, so results do not either.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

BUSY = 0.15
"""If other processes use at least this fraction of this process's cores, threads sleep while they wait."""

_LOOK_SECONDS = 1.0
_USERS_CHOICE = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_BYTES = 2 * 32768  # for each thread; torch gives each at least half of these
_TICKS = Path("/proc/stat")


@contextmanager
def share_cores(device: torch.device) -> Iterator[None]:
    """While it is open, torch's threads sleep on a busy machine and spin on a quiet one, checked every second.

    device: where the process computes; threads matter on a CPU only. Nothing changes if torch has a single thread, or
    if the environment says how threads wait (OMP_WAIT_POLICY, GOMP_SPINCOUNT).
    """
    chosen = any(name in os.environ for name in _USERS_CHOICE)
    if chosen or device.type != "cpu" or torch.get_num_threads() == 1:
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(OthersLoad(), ended), name="deit-fast-waiting", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


class OthersLoad:
    """The use of this process's cores by processes that do not belong to the run.

    The run's processes on this machine (LOCAL_WORLD_SIZE) are assumed to use as much as this one.
    """

    def __init__(self) -> None:
        self._last = self._read()

    def share(self) -> float:
        """The fraction since the last call, from 0 to 1; 0 if the kernel does not report it."""
        before, self._last = self._last, self._read()
        busy, idle, own = (now - then for now, then in zip(self._last, before, strict=True))
        return min(1.0, max(0.0, busy - own) / (busy + idle)) if busy + idle > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        """Seconds, over all cores: busy, idle, and used by the run."""
        cores, busy, idle = os.sched_getaffinity(0), 0.0, 0.0
        try:
            for line in _TICKS.read_text(encoding="ascii").splitlines():
                name, *ticks = line.split()
                if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
                    user, nice, system, unused, disk, *rest = map(int, ticks[:8])  # user includes guests
                    busy, idle = busy + user + nice + system + sum(rest), idle + unused + disk
        except (OSError, ValueError):
            return 0.0, 0.0, 0.0
        second, mine = os.sysconf("SC_CLK_TCK"), os.times()
        return busy / second, idle / second, (mine.user + mine.system) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class StandBy:
    """Sleeping threads that each took part in one torch operation, so that there are more OpenMP threads than cores."""

    def __init__(self) -> None:
        self._leave: threading.Event | None = None
        self._threads: list[threading.Thread] = []

    def switch(self, on: bool) -> None:
        """Starts or ends the threads; does nothing if they are in the wanted state."""
        if on == bool(self._threads):
            return
        if self._leave is not None:
            self._leave.set()
            for thread in self._threads:
                thread.join()
            self._leave, self._threads = None, []
        if on:
            self._leave = threading.Event()
            each = torch.get_num_threads() - 1  # threads that each one adds: it is itself the first of its team
            cores = len(os.sched_getaffinity(0))
            count = max(1, -(-(cores + 1 - torch.get_num_threads()) // each))
            self._threads = [threading.Thread(target=_stand_by, args=(self._leave,), daemon=True) for _ in range(count)]
            for thread in self._threads:
                thread.start()


def _stand_by(leave: threading.Event) -> None:
    torch.empty(torch.get_num_threads() * _BYTES, dtype=torch.uint8).fill_(0)
    leave.wait()


def _watch(load: OthersLoad, ended: threading.Event) -> None:
    others = StandBy()
    while not ended.wait(_LOOK_SECONDS):
        others.switch(load.share() >= BUSY)
    others.switch(False)
