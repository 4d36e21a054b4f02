"""Tables of words with aligned columns: plain for a terminal, or as Markdown that is readable unrendered.

tabulate is not used: its Markdown differs between releases, it reads cells as numbers unless told not to, and its
import of 30 ms would slow down every command.
"""

from collections.abc import Iterable, Sequence


def plain_table(rows: Iterable[Sequence[str]]) -> list[str]:
    """A line for each row: cells two spaces apart, no trailing spaces. All rows have the same number of cells."""
    return ["  ".join(cells).rstrip() for cells in _padded(rows)]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; a vertical bar in a cell is escaped."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    first, *others = _padded(escaped)
    return [f"| {' | '.join(cells)} |" for cells in (first, ["-" * len(cell) for cell in first], *others)]


def _padded(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
