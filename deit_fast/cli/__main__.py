"""python -m deit_fast.cli, as torchrun starts it, and the command deit-fast."""

import os
import sys
from typing import NoReturn

from deit_fast.runtime.exit_status import ExitStatus, report_status


def run() -> NoReturn:
    """Runs the command line and ends the process with its status; an interrupt is one line from the first import on."""
    try:
        from deit_fast.cli.main import main

        status = main()
    except KeyboardInterrupt:
        print("deit-fast: interrupted; run the same command again", file=sys.stderr)
        status = ExitStatus.INTERRUPTED
        report_status(status)
    if status == ExitStatus.INTERRUPTED:  # without waiting for threads, of downloads for one
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ExitStatus.INTERRUPTED)
    sys.exit(status)


if __name__ == "__main__":
    run()
