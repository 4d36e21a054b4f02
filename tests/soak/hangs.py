"""Runs on two processes, of which the second hangs: detected in time, no process left, the same weights at the end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from deit_fast.runtime.exit_status import ExitStatus
from tests.soak.crashes import WORDS
from tests.soak.images import write_images
from tests.soak.rounds import Found, rounds
from tests.training.test_train import environment

SECONDS = 30.0  # from the hang to the line about it
TIMEOUT = 10  # run.hang_timeout
PATIENCE = 60.0  # from the hang to the end of all processes, the launcher included
KINDS = ("worker", "loader", "collective")

# worker: a stopped process, like a frozen machine. loader: a read that never returns. collective: the peer never joins.
HUNG_RUN = """
import os, signal, sys, time
from pathlib import Path
import torch
from deit_fast.cli import main as cli
from deit_fast.training import loop
from deit_fast.data.sources import folder

out, kind, when = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
count = [0]

def hanging(call, number):
    def called(*rest, **named):
        count[0] += 1
        if count[0] == number:
            out.write_text(str(time.time()))
            if kind == "worker":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif kind == "loader":
                time.sleep(600)
            else:
                torch.distributed.recv(torch.zeros(1), 0)
        return call(*rest, **named)
    return called

if os.environ["RANK"] == "1":
    if kind == "loader":
        folder.ImageFolder.read = hanging(folder.ImageFolder.read, 60 + when)
    else:
        loop.learning_rate = hanging(loop.learning_rate, 8 + when)
sys.argv[1:4] = []
sys.exit(cli.main())
"""


def hangs(folder: Path, count: int, seed: int, plant: str) -> Found:
    """Planted bug deaf: the watchdog does nothing."""
    wrong, seen, ended = list[str](), list[float](), list[float]()
    write_images(folder / "data")
    script = folder / "hung.py"
    script.write_text(HUNG_RUN)
    straight = folder / "straight"
    plain = subprocess.run(command(folder, straight), env=environment(), capture_output=True, text=True)
    assert plain.returncode == 0, plain.stderr
    for number in rounds(count, "hangs", 600):
        kind, when = KINDS[number % len(KINDS)], (seed + number // len(KINDS)) % 8
        out = folder / f"run{number}"
        timeout = 100_000 if plant == "deaf" else TIMEOUT
        wrong += [f"{kind}, {when}: {what}" for what in hang(folder, out, script, kind, when, timeout, seen, ended)]
        if not wrong:
            again = subprocess.run(command(folder, out), env=environment(), capture_output=True, text=True)
            if again.returncode or "resumed from" not in again.stdout:
                wrong.append(f"{kind}, {when}: it does not go on: {again.stdout[-200:]} {again.stderr[-300:]}")
            elif not same_weights(out, straight):
                wrong.append(f"{kind}, {when}: other weights than of the undisturbed run")
        if wrong:
            break
    slowest = f"told after at most {max(seen, default=0):.1f} s, all ended after {max(ended, default=0):.1f} s"
    return Found(f"{len(ended)} hangs, {slowest}, with run.hang_timeout={TIMEOUT}", wrong)


def hang(
    folder: Path, out: Path, script: Path, kind: str, when: int, timeout: int, seen: list[float], ended: list[float]
) -> list[str]:
    moment = out.with_suffix(".moment")
    words = command(folder, out, f"run.hang_timeout={timeout}")
    module = words.index("-m", 3)
    words = [*words[:module], str(script), str(moment), kind, str(when), *words[module + 2 :]]
    errors = out.with_suffix(".stderr")
    with open(errors, "w") as stderr:
        run = subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=stderr)
    began, told = time.time(), 0.0
    while run.poll() is None:
        told = told or (time.time() if "no sign of life for" in errors.read_text() else 0.0)
        since = float(moment.read_text() or began) if moment.exists() else began
        if time.time() - since > PATIENCE:
            break
        time.sleep(0.05)
    left = processes_of(script)
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    run.kill()
    run.wait()
    if not moment.exists():
        return [f"it never hung: {errors.read_text()[-300:]}"]
    since = float(moment.read_text())
    if not told:
        return [f"nobody noticed within {PATIENCE:g} s"]
    seen.append(told - since)
    ended.append(time.time() - since)
    wrong = [f"told after {told - since:.0f} s"] if told - since > SECONDS else []
    if left:
        wrong.append(f"{len(left)} processes left behind")
    if run.returncode == 0 or f"exitcode  : {ExitStatus.HUNG}" not in errors.read_text():
        wrong.append(f"no exit with {ExitStatus.HUNG}: {run.returncode}")
    return wrong


def command(folder: Path, out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "deit_fast.cli",
            "train", "demo_pretrain", "--data", str(folder / "data"), "--out", str(out), *WORDS, *words]  # fmt: skip


def processes_of(script: Path) -> list[int]:
    """Processes with the script in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if str(script).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(out / "checkpoints" / "last.safetensors") for out in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
