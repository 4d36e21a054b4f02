"""Runs the stand-in until it is interrupted: `python -m tests.kubernetes FOLDER`, to try commands by hand."""

import contextlib
import signal
import sys
from pathlib import Path

from deit_fast.data.tools.demo import write_demo
from tests.kubernetes.cluster import image_environment, running
from tests.kubernetes.pods import missing

if len(sys.argv) != 2 or sys.argv[1].startswith("-") or Path(sys.argv[1]).exists():
    sys.exit("usage: python -m tests.kubernetes FOLDER, which must not exist yet")
folder = Path(sys.argv[1]).absolute()
if reason := missing():
    sys.exit(reason)
folder.mkdir(parents=True)
with running(folder, image_environment()) as cluster:
    write_demo(cluster.add_claim("imagenet") / "digits")
    cluster.add_claim("runs")
    print(f"export KUBECONFIG={cluster.kubeconfig}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.pause()
