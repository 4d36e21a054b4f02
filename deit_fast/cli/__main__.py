"""The command deit-fast, also run as python -m deit_fast.cli by torchrun."""

import atexit
import os
import sys
from typing import NoReturn

from deit_fast.runtime.exit_status import ExitStatus, report_status


def run() -> NoReturn:
    """Runs the command line and ends the process with its status.

    From the first import on, an interrupt prints one line.
    """
    ended: list[int] = []

    def leave() -> None:
        """Ends the process without unloading Python and torch's libraries, which takes half a second and 100 MB."""
        if ended:
            _flush()
            os._exit(ended[0])

    atexit.register(leave)  # the function registered first is called last
    try:
        from deit_fast.cli.main import main

        status = main()
    except KeyboardInterrupt:
        print("deit-fast: interrupted; run the same command again", file=sys.stderr)
        status = ExitStatus.INTERRUPTED
        report_status(status)
    if status == ExitStatus.INTERRUPTED:  # without waiting for threads, for example of downloads
        _flush()
        os._exit(ExitStatus.INTERRUPTED)
    ended.append(status)
    sys.exit(status)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


if __name__ == "__main__":
    run()
