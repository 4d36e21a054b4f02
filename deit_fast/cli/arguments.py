"""Shared parts of the commands' parsers: the parser class, types of words, and options that several commands have."""

import argparse
import os
import re
import sys
from pathlib import Path

from deit_fast.runtime.errors import RunError, is_out_of_memory, one_line, printable, suggest, too_little_memory
from deit_fast.runtime.exit_status import ExitStatus
from deit_fast.runtime.object_store import check_writable, is_remote

OVERRIDES = "section.key=value words that change the recipe, for example optim.lr=1e-3 (keys: deit-fast show NAME)"
WEIGHTS = "weights in any known format, the folder of a run, a URI, or a name of deit-fast zoo"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports a usage error in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        if found := re.search(r"invalid choice: '?([^' ]+)'? \(choose from (.+)\)", message):
            message += suggest(found[1], re.findall(r"[\w-]+", found[2]))
        message = message.removesuffix(", key=value")  # argparse counts words that may be left out as required too
        for action in self._actions:
            if isinstance(action.choices, dict) and message.endswith(f"are required: {action.dest}"):
                message = f"expected one of {', '.join(action.choices)}"
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


def local_file(text: str) -> Path:
    path = local_path(text)
    if path.is_dir():  # said before an evaluation of minutes, not after
        raise argparse.ArgumentTypeError(f"expected a file, got the folder {text}")
    return path


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


def complain(message: object) -> None:
    """Prints the message's lines to stderr, with the rank if there are several processes."""
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    for line in str(message).split("\n"):
        print(f"deit-fast: {rank}{printable(line)}", file=sys.stderr)


def complain_of_memory(error: BaseException, arguments: argparse.Namespace) -> ExitStatus | None:
    """Reports that a command ran out of memory, and returns its status; returns None, silently, for any other error."""
    if limit := too_little_memory(error):
        complain(limit)
        return ExitStatus.REFUSED
    if not is_out_of_memory(error):
        return None
    fewer = f"; --batch {max(1, arguments.batch // 2)} takes less" if hasattr(arguments, "batch") else ""
    complain(f"out of memory ({one_line(error)[:200] or type(error).__name__}){fewer}")
    return ExitStatus.OUT_OF_MEMORY
