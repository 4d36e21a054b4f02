"""python -m deit_fast.cli, as torchrun starts it."""

import sys

from deit_fast.cli.main import main

sys.exit(main())
