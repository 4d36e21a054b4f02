"""python -m deit_fast.cli, as torchrun starts it."""

import sys

from deit_fast.cli.main import main
from deit_fast.runtime.exit_status import report_status

status: object = 1  # of a traceback
try:
    status = main()
except SystemExit as stop:  # argparse's
    status = stop.code
finally:
    report_status(status if isinstance(status, int) else 0)
sys.exit(status)
