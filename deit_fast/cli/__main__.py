"""python -m deit_fast.cli, as torchrun starts it, and the command deit-fast."""

import atexit
import os
import sys
from typing import NoReturn

from deit_fast.runtime.exit_status import ExitStatus, report_status


def run() -> NoReturn:
    """Runs the command line and ends the process with its status; an interrupt is one line from the first import on."""
    ended: list[int] = []

    def leave() -> None:
        """Ends the process where Python would take itself and torch's libraries apart: half a second and 100 MB."""
        if ended:
            _flush()
            os._exit(ended[0])

    atexit.register(leave)  # the first to be registered is the last to be called
    try:
        from deit_fast.cli.main import main

        status = main()
    except KeyboardInterrupt:
        print("deit-fast: interrupted; run the same command again", file=sys.stderr)
        status = ExitStatus.INTERRUPTED
        report_status(status)
    if status == ExitStatus.INTERRUPTED:  # without waiting for threads, of downloads for one
        _flush()
        os._exit(ExitStatus.INTERRUPTED)
    ended.append(status)
    sys.exit(status)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


if __name__ == "__main__":
    run()
