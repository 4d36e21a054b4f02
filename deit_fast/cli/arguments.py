"""What the parsers of the commands share: their kind, their types of words, and options that several have."""

import argparse
import os
import re
import sys
from pathlib import Path

from deit_fast.runtime.errors import RunError, printable, suggest
from deit_fast.runtime.exit_status import ExitStatus
from deit_fast.runtime.object_store import check_writable, is_remote

OVERRIDES = "section.key=value words that change the recipe, for example optim.lr=1e-3 (keys: deit-fast show NAME)"


class Parser(argparse.ArgumentParser):
    """argparse with one line on a usage error."""

    def error(self, message: str) -> None:  # type: ignore[override]
        if found := re.search(r"invalid choice: '?([^' ]+)'? \(choose from (.+)\)", message):
            message += suggest(found[1], re.findall(r"[\w-]+", found[2]))
        self.exit(ExitStatus.REFUSED, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_labels(parser: argparse.ArgumentParser, which: str = "") -> None:
    parser.add_argument(
        "--labels", type=local_path, metavar="FILE",
        help=f"labels of {which}images without class folders; default: a file of a published name beside them",
    )  # fmt: skip


def local_path(text: str) -> Path:
    if is_remote(text):
        raise argparse.ArgumentTypeError(f"expected a path on this machine, got {text}")
    return Path(text)


def writable(text: str) -> str:
    if is_remote(text):
        try:
            check_writable(text)
        except RunError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text


def positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)


def check_there(*checkpoints: str | Path | None) -> None:
    """Raises RunError for one that is missing, before torch is imported; what it is, its reader says."""
    for path in checkpoints:
        if path is not None and not is_remote(path) and not Path(path).exists():
            raise RunError(f"{path}: no such checkpoint")


def complain(message: object) -> None:
    """Prints the message's lines to stderr, with the rank where there are several processes."""
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    for line in str(message).split("\n"):
        print(f"deit-fast: {rank}{printable(line)}", file=sys.stderr)
