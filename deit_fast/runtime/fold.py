"""Lines that fit a terminal of 80 columns, where their parts allow it."""

from collections.abc import Sequence

COLUMNS = 80


def fold(parts: Sequence[str], indent: int, joint: str = " ", end: str = "") -> str:
    """The parts in one line, or in several lines of at most COLUMNS columns, each with as many parts as fit.

    joint: stands between two parts of a line. indent: columns before each line but the first. end: ends each line but
    the last; it is a backslash in a command. No part is broken: one that is longer, as a path may be, stands alone.
    """
    lines = [""]
    for number, part in enumerate(parts):
        room = COLUMNS - len(end) * (number + 1 < len(parts))
        if not number:
            lines[-1] = part
        elif len(lines[-1]) + len(joint) + len(part) <= room:
            lines[-1] += joint + part
        else:
            lines.append(" " * indent + part)
    return f"{end}\n".join(line.rstrip() for line in lines)
