"""Nodes that cannot meet: the launcher says why and ends, whatever listens on the port."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from deit_fast.runtime.exit_status import ExitStatus

LAUNCH = (
    "import sys; from deit_fast.runtime import rendezvous, torchrun; rendezvous.PATIENCE_SECONDS = int(sys.argv[1]);"
    "sys.exit(torchrun.main(sys.argv[2:]))"
)


def start(node: int, port: int, patience: int) -> subprocess.Popen[str]:
    meeting = ["--rdzv-backend", "c10d", "--rdzv-id", "x", "--rdzv-endpoint", f"localhost:{port}"]
    return launch(patience, "--node-rank", str(node), *meeting)


def launch(patience: int, *meeting: str) -> subprocess.Popen[str]:
    words = ["--nnodes", "2", "--nproc-per-node", "1", *meeting, "--no-python", "bash", "-c", "echo rank $RANK"]
    environment = {name: value for name, value in os.environ.items() if name != "KUBERNETES_SERVICE_HOST"}
    command = [sys.executable, "-c", LAUNCH, str(patience), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which something listens that never answers."""
    with socket.socket() as foreign:
        foreign.bind(("0.0.0.0", 0))
        foreign.listen()
        yield foreign.getsockname()[1]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_foreign_listener_is_named_by_the_first_node_and_given_up_by_the_others(taken: int) -> None:
    first, other = start(0, taken, 600), start(1, taken, 1)
    _, said = first.communicate(timeout=100)
    assert f"localhost:{taken}: expected a free port for the nodes to meet at; another program has it" in said
    assert "Traceback" not in said
    assert first.returncode == ExitStatus.HUNG
    _, said = other.communicate(timeout=100)
    assert said.startswith(f"deit-fast: {socket.gethostname()}: the nodes did not meet at localhost:{taken} within 1 s")
    assert said.count("\n") == 1
    assert other.returncode == ExitStatus.HUNG


def test_a_node_that_stays_alone_gives_up() -> None:
    alone = start(0, free_port(), 1)
    _, said = alone.communicate(timeout=100)
    assert " within 1 s: one has not started or cannot reach the port" in said
    assert said.count("\n") == 1
    assert alone.returncode == ExitStatus.HUNG


@pytest.mark.parametrize("by", ["static", "no rank"])
def test_nodes_meet_in_torchruns_own_ways(by: str) -> None:
    port = str(free_port())
    static = ["--master-addr", "127.0.0.1", "--master-port", port]
    ranked = [["--node-rank", str(node), *static] for node in range(2)]
    same = ["--rdzv-backend", "c10d", "--rdzv-id", "x", "--rdzv-endpoint", f"localhost:{port}"]
    nodes = [launch(600, *words) for words in (ranked if by == "static" else [same, same])]
    said = [node.communicate(timeout=100) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert sorted(out for out, _ in said) == ["rank 0\n", "rank 1\n"]
