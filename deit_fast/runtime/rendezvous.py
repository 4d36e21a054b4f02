"""Where the nodes of a run meet before torchrun starts their workers: soon, or with a line that says why not.

torchrun's own client waits without end, and without a line, for an answer of whatever listens on the port. Therefore:

* The first node alone hosts the store. Where it cannot have the port it ends at once, instead of becoming a client of
  the program that has it. The scheduler then ends the other nodes. The next start meets elsewhere: components/launch.py
  derives the port from the job and the number of its restarts, which all nodes know.
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
PULLING_SECONDS = 600  # Kubernetes starts all pods at once, but a node may first have to fetch the image
_POLL_SECONDS = 0.3


@contextlib.contextmanager
def watched_rendezvous(arguments: argparse.Namespace) -> Iterator[None]:
    """Sets how the nodes of torchrun's parsed `arguments` meet at `--rdzv-backend c10d`, or ends this process.

    The node of `--node-rank 0` is the host, so `--rdzv-endpoint` has to name it. Where no node has a rank (None), the
    host is the one that the endpoint names, as torchrun has it. One node has none to meet, and with another backend
    the nodes meet as torchrun lets them.
    """
    rank, arguments.node_rank = arguments.node_rank, arguments.node_rank or 0
    if arguments.nnodes == "1" or arguments.rdzv_backend != "c10d":
        yield
        return
    patience = PULLING_SECONDS if "KUBERNETES_SERVICE_HOST" in os.environ else PATIENCE_SECONDS
    # torchrun's own limits are twice as long, so that the line of this module comes first.
    limits = f"join_timeout={2 * patience},read_timeout={2 * patience}"
    host = f"is_host={int(rank == 0)}," if rank is not None else ""
    arguments.rdzv_conf = f"{host}{limits},{arguments.rdzv_conf}".rstrip(",")
    arguments.node_rank = 0  # of which torchrun would say that it ignores it
    ended = threading.Event()
    threading.Thread(target=_watch, args=(arguments, patience, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def explain_rendezvous(error: RendezvousError, arguments: argparse.Namespace) -> str:
    """Why the nodes did not meet, as one line."""
    cause = one_line(error.__cause__ or error) or type(error).__name__
    if "EADDRINUSE" in cause:
        return f"{arguments.rdzv_endpoint}: expected a free port for the nodes to meet at; another program has it"
    return f"{socket.gethostname()}: the nodes did not meet at {arguments.rdzv_endpoint}: {cause}"


def _watch(arguments: argparse.Namespace, patience: int, ended: threading.Event) -> None:
    """Returns once there are workers or `ended` is set, or ends the process, whatever its main thread waits for."""
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
