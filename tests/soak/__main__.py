"""The long tests with a number of rounds: `python -m tests.soak` prints what was reached; docs in each module."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.soak import damages, schedules, stalls
from tests.soak.crashes import PLANTS, crash_rounds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("what", nargs="*", default=["crashes", "damages", "schedules", "stalls"])
    parser.add_argument("--crashes", type=int, default=1000, help="kills (default %(default)s)")
    parser.add_argument("--damages", type=int, default=1000, help="damaged checkpoints (default %(default)s)")
    parser.add_argument("--schedules", type=int, default=100, help="changes of the world size (default %(default)s)")
    parser.add_argument("--stalls", type=int, default=200, help="saves that are timed (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--plant", default="", help=f"a bug that has to be found: {PLANTS[1:]} or, schedules, forgetful"
    )
    chosen = parser.parse_args()
    rows, wrong = [], []
    for what in chosen.what:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            if what == "crashes":
                outcome = crash_rounds(Path(folder), chosen.crashes, chosen.seed, chosen.plant)
                done = f"{outcome.rounds} kills, {outcome.inside} inside a write, {outcome.runs} runs"
                found = outcome.wrong
            elif what == "damages":
                found = damages.undetected(Path(folder), chosen.damages, chosen.seed)
                done = f"{chosen.damages} damaged checkpoints"
            elif what == "stalls":
                done, found = stalls.measure(Path(folder), chosen.stalls)
            else:
                found = schedules.differing(Path(folder), chosen.schedules, chosen.seed, chosen.plant)
                done = f"{chosen.schedules} schedules"
        rows.append(f"| {what} | {done} | {len(found)} wrong | {time.monotonic() - start:.0f} s |")
        wrong += found
    print("| what | done | figure | time |\n|---|---|---|---|", *rows, *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
