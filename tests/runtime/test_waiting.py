"""How threads wait: what others use of the cores, by a /proc/stat of the test's; libgomp's own count of its threads."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from deit_fast.runtime import waiting
from deit_fast.runtime.waiting import OthersLoad, share_cores
from tests.conftest import ROOT

CPU = torch.device("cpu")


class Machine:
    """A /proc/stat, an affinity and an own use of CPU, as the test sets them, in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, cores: int = 2) -> None:
        self.own, self.busy, self.idle, self.cores = 0.0, [0.0] * cores, [0.0] * cores, set(range(cores))
        self.file = folder / "stat"
        monkeypatch.setattr(waiting, "_TICKS", self.file)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: self.cores)
        monkeypatch.setattr(os, "times", lambda: os.times_result((self.own, 0.0, 0.0, 0.0, 0.0)))
        self.write()

    def write(self) -> None:
        rate = os.sysconf("SC_CLK_TCK")
        lines = ["cpu  1 2 3 4 5 6 7 8 0 0"]
        for number, (busy, idle) in enumerate(zip(self.busy, self.idle, strict=True)):
            # user, nice, system, idle, waiting for a disk, two kinds of interrupts, stolen, and two that are users too
            lines.append(f"cpu{number} {round(busy * rate) - 6} 1 2 {round(idle * rate)} 0 1 1 1 99 99")
        self.file.write_text("\n".join([*lines, "intr 5 4 3", "ctxt 9"]) + "\n")

    def run(self, busy: float, idle: float, own: float) -> None:
        """Seconds on each core, and of the process."""
        self.busy = [each + busy for each in self.busy]
        self.idle = [each + idle for each in self.idle]
        self.own += own
        self.write()


def test_others_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(monkeypatch, tmp_path)
    machine.run(1, 0, 1.5)
    load = OthersLoad()
    machine.run(1.0, 0.0, 1.96)
    assert load.share() == pytest.approx(0.02)
    machine.run(1.0, 0.0, 0.5)  # two cores for a second: three quarters were not ours
    assert load.share() == pytest.approx(0.75)
    machine.run(0.4, 0.6, 0.8)
    assert load.share() == pytest.approx(0.0)
    machine.run(0.0, 0.0, 0.0)
    assert load.share() == 0.0


def test_others_share_of_the_cores_that_are_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(monkeypatch, tmp_path, cores=8)
    machine.cores = {0, 1}
    load = OthersLoad()
    machine.busy[2:] = [50.0] * 6  # not where this process may run
    machine.run(1.0, 0.0, 2.0)
    assert load.share() == pytest.approx(0.0)


def test_processes_of_the_run_are_no_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    machine = Machine(monkeypatch, tmp_path)
    load = OthersLoad()
    machine.run(1.0, 0.0, 1.0)
    assert load.share() == pytest.approx(0.0)


@pytest.mark.parametrize("content", [None, "cpu0 nonsense\n", ""])
def test_a_kernel_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None) -> None:
    machine = Machine(monkeypatch, tmp_path)
    machine.file.unlink() if content is None else machine.file.write_text(content)
    load = OthersLoad()
    assert load.share() == 0.0
    assert load.share() == 0.0


@pytest.mark.parametrize(
    ("variables", "threads", "device", "watches"),
    [
        ({}, 2, "cpu", True),
        ({}, 1, "cpu", False),
        ({}, 2, "cuda", False),
        ({"OMP_WAIT_POLICY": "active"}, 2, "cpu", False),
        ({"GOMP_SPINCOUNT": "0"}, 2, "cpu", False),
        ({"OMP_NUM_THREADS": "2"}, 2, "cpu", True),
    ],
)
def test_what_the_user_chose_stays(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], threads: int, device: str, watches: bool
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    before, environment = threading.active_count(), dict(os.environ)
    with share_cores(torch.device(device)):
        assert threading.active_count() == before + watches
    assert threading.active_count() == before
    assert dict(os.environ) == environment


LIBGOMP = """
import hashlib, json, os, time
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import torch
from deit_fast.runtime import waiting

values = torch.zeros(2 * 65536)
def spent():
    # CPU seconds of 40 operations with pauses between them: the thread that shares them waits in each
    values.add_(1)
    start = time.process_time()
    for _ in range(40):
        values.add_(1)
        time.sleep(0.01)
    return time.process_time() - start
awake, standby = spent(), waiting.StandBy()
standby.switch(True)
time.sleep(0.5)
found = {"spent": [awake, spent()]}
standby.switch(False)

torch.manual_seed(0)
a, b = torch.randn(300, 300), torch.randn(300, 300)
def digest():
    x = a
    for _ in range(5):
        x = torch.nn.functional.gelu(x @ b).softmax(1) + a.sum()
    return hashlib.sha256(x.numpy().tobytes()).hexdigest()
def tasks():
    return len(os.listdir("/proc/self/task"))
def until(there):
    for _ in range(6000):
        if there():
            return
        time.sleep(0.01)
for cores, helpers in ((2, 1), (4, 3)):
    os.sched_getaffinity = lambda _: set(range(cores))
    time.sleep(0.1)
    standby, first, before = waiting.StandBy(), digest(), tasks()
    standby.switch(True)
    standby.switch(True)
    until(lambda: tasks() >= before + 2 * helpers)
    second, during = digest(), tasks()
    standby.switch(False)
    until(lambda: tasks() <= before)
    found[str(cores)] = [first == second == digest(), during - before, torch.get_num_threads()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def libgomp() -> dict[str, Any]:
    """What a process of two threads of torch's found, without and with threads that stand by."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("torch has one thread on one core")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", LIBGOMP], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(("cores", "helpers"), [(2, 1), (4, 3)])
def test_there_are_more_threads_than_cores_and_results_stay(libgomp: dict[str, Any], cores: int, helpers: int) -> None:
    """libgomp counts two threads of torch's, and one more for each that stands by with a team of two."""
    assert libgomp[str(cores)] == [True, 2 * helpers, 2]


def test_libgomp_hardly_spins_beside_threads_that_stand_by(libgomp: dict[str, Any]) -> None:
    awake, asleep = libgomp["spent"]
    assert asleep < awake / 3


def test_load_switches_and_the_end_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look each time the test lets one happen: busy, still busy, quiet, busy, and the end."""
    shares, seen = iter([waiting.BUSY, 1.0, waiting.BUSY / 2, 0.9]), list[bool]()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(waiting, "_LOOK_SECONDS", 0.0)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    looked = threading.Event()

    class Load:
        def share(self) -> float:
            share = next(shares, None)
            if share is None:
                looked.set()
            return 0.9 if share is None else share

    class StandBy:
        def switch(self, on: bool) -> None:
            seen.append(on)

    monkeypatch.setattr(waiting, "OthersLoad", Load)
    monkeypatch.setattr(waiting, "StandBy", StandBy)
    with share_cores(CPU):
        assert looked.wait(60)
    assert seen[:4] == [True, True, False, True]
    assert seen[-1] is False
