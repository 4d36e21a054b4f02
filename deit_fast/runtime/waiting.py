"""How torch's threads wait for each other on a CPU: awake on a quiet machine, asleep where others want the cores.

A thread of OpenMP that is done before the others spins for some milliseconds: its next task comes sooner than the
kernel could wake it. On a busy machine the thread that it waits for has no core, and spinning uses up what the process
gets. libgomp, the OpenMP of torch's wheels, hardly spins while a process has more threads of OpenMP than cores (its
manual, GOMP_SPINCOUNT). So the way of waiting is changed here while the process runs: by threads that only stand by.
The threads that share an operation stay as many as they were, and so no result depends on it.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

BUSY = 0.15
"""The share of this process's cores, used by other processes, from which on threads wait asleep."""

_LOOK_SECONDS = 1.0
_USERS_CHOICE = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_BYTES = 2 * 32768  # for each thread, of which torch gives no thread less than half
_TICKS = Path("/proc/stat")


@contextmanager
def share_cores(device: torch.device) -> Iterator[None]:
    """While it is open, torch's threads wait asleep on a busy machine, by a look each second, and awake on a quiet one.

    device: where the process computes; only on a CPU its threads matter. Nothing is done either where torch has a
    single thread, or where the environment says how threads wait (OMP_WAIT_POLICY, GOMP_SPINCOUNT).
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
    """What other processes than the run's use of the cores that this one may use.

    The run's processes of this machine (LOCAL_WORLD_SIZE) are taken to use as much as this one.
    """

    def __init__(self) -> None:
        self._last = self._read()

    def share(self) -> float:
        """From 0 to 1, since the last call; 0 where the kernel does not tell."""
        before, self._last = self._last, self._read()
        busy, idle, own = (now - then for now, then in zip(self._last, before, strict=True))
        return min(1.0, max(0.0, busy - own) / (busy + idle)) if busy + idle > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        """Seconds, over all cores: busy, idle, and those that the run had."""
        cores, busy, idle = os.sched_getaffinity(0), 0.0, 0.0
        try:
            for line in _TICKS.read_text(encoding="ascii").splitlines():
                name, *ticks = line.split()
                if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
                    user, nice, system, unused, disk, *rest = map(int, ticks[:8])  # without guests, who are users
                    busy, idle = busy + user + nice + system + sum(rest), idle + unused + disk
        except (OSError, ValueError):
            return 0.0, 0.0, 0.0
        second, mine = os.sysconf("SC_CLK_TCK"), os.times()
        return busy / second, idle / second, (mine.user + mine.system) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class StandBy:
    """Threads that have taken part in one operation of torch's and sleep: with them there are more than cores."""

    def __init__(self) -> None:
        self._leave: threading.Event | None = None
        self._threads: list[threading.Thread] = []

    def switch(self, on: bool) -> None:
        """Brings them up or lets them go; nothing where they are as asked for."""
        if on == bool(self._threads):
            return
        if self._leave is not None:
            self._leave.set()
            for thread in self._threads:
                thread.join()
            self._leave, self._threads = None, []
        if on:
            self._leave = threading.Event()
            each = torch.get_num_threads() - 1  # that one brings: it is itself the first of a team
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
