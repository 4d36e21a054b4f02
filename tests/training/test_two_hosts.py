"""Two hosts, as far as the network goes: namespaces with addresses of their own, joined by a cable that can be cut."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from deit_fast.components import deit
from safetensors.torch import load_file
from torchx.specs import macros

from deit_fast.data.tools.demo import write_demo
from tests.conftest import ROOT

pytestmark = pytest.mark.soak

HOSTS = ("first", "second")
HANG_SECONDS = 15
HUNG = re.compile(r"deit-fast: rank \d: no sign of life for \d+ s at step \d+ ")
WORDS = ("schedule.epochs=2", "schedule.warmup_epochs=1", "run.checkpoint_every=10", "run.log_every=10",
         "run.precision=fp32", f"run.hang_timeout={HANG_SECONDS}")  # fmt: skip


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@dataclass
class Network:
    """Host `name` is the namespace `prefix + name`; its end of the cable is the device `name`."""

    prefix: str
    folder: Path

    def connect(self) -> None:
        for host in HOSTS:
            ip("netns", "add", self.prefix + host)
        ends = [("name", host, "netns", self.prefix + host) for host in HOSTS]
        ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for number, host in enumerate(HOSTS, 1):
            ip("-n", self.prefix + host, "address", "add", f"10.77.0.{number}/24", "dev", host)
            for device in ("lo", host):
                ip("-n", self.prefix + host, "link", "set", device, "up")
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n10.77.0.1 first\n10.77.0.2 second\n")

    def plug(self, state: str) -> None:
        ip("-n", self.prefix + "second", "link", "set", "second", state)

    def remove(self) -> None:
        for host in HOSTS:
            listed = subprocess.run(["ip", "netns", "pids", self.prefix + host], capture_output=True, text=True).stdout
            for pid in map(int, listed.split()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                ip("netns", "delete", self.prefix + host)

    def processes(self) -> list[str]:
        names = [self.prefix + host for host in HOSTS]
        return "".join(subprocess.check_output(["ip", "netns", "pids", name], text=True) for name in names).split()

    def start(self, data: Path, out: Path) -> list[subprocess.Popen[bytes]]:
        """The component's role on both hosts, as a scheduler starts it."""
        role = deit.pretrain(*WORDS, recipe="demo_pretrain", data=str(data), out=str(out), j="2x1").roles[0]
        started = []
        for number, host in enumerate(HOSTS):
            values = macros.Values(img_root="", app_id="77", replica_id=str(number), rank0_env="FIRST_HOST")
            node = values.apply(role)
            # torchrun knows the first host by its name.
            enter = f'mount --bind {self.folder / "hosts"} /etc/hosts && hostname {host} && exec "$@"'
            words = ["ip", "netns", "exec", self.prefix + host, "unshare", "--uts", "--mount", "sh", "-c", enter, "-"]
            environment = {**os.environ, **node.env, "FIRST_HOST": "first", "PYTHONPATH": str(ROOT)}
            with open(self.folder / f"{host}.log", "wb") as log:
                started.append(subprocess.Popen([*words, node.entrypoint, *node.args], env=environment, stdout=log,
                                                stderr=log))  # fmt: skip
        return started

    def log(self, host: str) -> str:
        return (self.folder / f"{host}.log").read_text()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    if not shutil.which("ip") or os.geteuid():
        pytest.skip("needs root and Debian's iproute2 for network namespaces")
    network = Network(f"deit{os.getpid()}-", tmp_path)
    try:
        try:
            network.connect()
        except OSError as error:
            pytest.skip(f"needs network namespaces, which this machine forbids: {error}")
        yield network
    finally:
        network.remove()


def wait_for(condition: Callable[[], object], seconds: float, network: Network) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "".join(map(network.log, HOSTS))
        time.sleep(0.1)


def losses(out: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]


def test_two_hosts_train_as_one_and_survive_a_cut_cable(network: Network, tmp_path: Path) -> None:
    data = write_demo(tmp_path / "digits")
    alone = deit.pretrain(*WORDS, recipe="demo_pretrain", data=str(data), out=str(tmp_path / "alone"), j="1x2").roles[0]
    alone = macros.Values(img_root="", app_id="7", replica_id="0", rank0_env="").apply(alone)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([alone.entrypoint, *alone.args], env=environment, check=True, capture_output=True, timeout=120)

    out = tmp_path / "run"
    first, second = network.start(data, out)
    wait_for((out / "checkpoints" / "last.pt").exists, 90, network)
    network.plug("down")
    wait_for(lambda: all(HUNG.search(network.log(host)) for host in HOSTS), HANG_SECONDS + 15, network)
    assert first.wait(60) != 0
    # The launcher of the host that is cut off waits for the rendezvous until the kernel gives the connection up, a
    # quarter of an hour; schedulers end it: TERM, and KILL after a while.
    second.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        second.wait(10)
    second.kill()
    assert second.wait() != 0
    assert [len(HUNG.findall(network.log(host))) for host in HOSTS] == [1, 1]
    assert not network.processes()
    assert not (out / "result.json").exists()

    network.plug("up")
    assert [process.wait(120) for process in network.start(data, out)] == [0, 0], "".join(map(network.log, HOSTS))
    assert "resumed from" in network.log("first")
    assert losses(out) == losses(tmp_path / "alone")
    expected, found = (load_file(folder / "checkpoints" / "last.safetensors") for folder in (tmp_path / "alone", out))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
