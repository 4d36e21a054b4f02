"""The rendezvous of a run's nodes before torchrun starts their workers; if it fails, a line says why.

torchrun's own client waits forever, and without a line, for an answer of any program that listens on the port.
Therefore:

* Only the first node hosts the store. If the port is taken, the node ends at once instead of becoming a client of the
  other program. The scheduler then ends the other nodes. The next start uses another port: components/launch.py derives
  it from the job and the number of its restarts, which all nodes know.
* A node without workers gives up after PATIENCE_SECONDS.
"""

import argparse
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import psutil
from torch.distributed.elastic.rendezvous import RendezvousError

from deit_fast.runtime.errors import one_line
from deit_fast.runtime.exit_status import ExitStatus

PATIENCE_SECONDS = 120
PULLING_SECONDS = 600  # Kubernetes starts all pods at once, but a node may have to pull the image first
_POLL_SECONDS = 0.3


@contextlib.contextmanager
def watched_rendezvous(arguments: argparse.Namespace) -> Iterator[None]:
    """Sets how the nodes of torchrun's parsed `arguments` meet with `--rdzv-backend c10d`, or ends this process.

    The node with `--node-rank 0` hosts the store, so `--rdzv-endpoint` has to name this node. If no node has a rank
    (None), the host is the node that the endpoint names, as in torchrun. A single node, and nodes with another backend,
    meet as torchrun does it.
    """
    rank, arguments.node_rank = arguments.node_rank, arguments.node_rank or 0
    if arguments.nnodes == "1" or arguments.rdzv_backend != "c10d":
        yield
        return
    patience = PULLING_SECONDS if "KUBERNETES_SERVICE_HOST" in os.environ else PATIENCE_SECONDS
    # torchrun's own limits are set twice as long, so that this module's line comes first.
    limits = f"join_timeout={2 * patience},read_timeout={2 * patience}"
    host = f"is_host={int(rank == 0)}," if rank is not None else ""
    arguments.rdzv_conf = f"{host}{limits},{arguments.rdzv_conf}".rstrip(",")
    arguments.node_rank = 0  # else torchrun would print that it ignores the option
    ended = threading.Event()
    threading.Thread(target=_watch, args=(arguments, patience, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def explain_rendezvous(error: RendezvousError, arguments: argparse.Namespace) -> str:
    """Why the nodes did not meet, in one line."""
    cause = one_line(error.__cause__ or error) or type(error).__name__
    if "EADDRINUSE" in cause:
        return f"{arguments.rdzv_endpoint}: expected a free port for the nodes to meet at; another program has it"
    return f"{socket.gethostname()}: the nodes did not meet at {arguments.rdzv_endpoint}: {cause}"


def _watch(arguments: argparse.Namespace, patience: int, ended: threading.Event) -> None:
    """Returns when there are workers or `ended` is set; else ends the process, whatever its main thread waits for."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if ended.wait(_POLL_SECONDS) or psutil.Process().children():
            return
    line = (
        f"{socket.gethostname()}: the nodes did not meet at {arguments.rdzv_endpoint} within {patience} s: one "
        "has not started or cannot reach the port, or another program answers there"
    )
    print(f"deit-fast: {line}", file=sys.stderr, flush=True)
    os._exit(ExitStatus.HUNG)
