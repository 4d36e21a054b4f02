"""Tables of words, every column as wide as its widest cell: for a terminal, or as Markdown that reads well unrendered.

tabulate draws neither as it is: its Markdown differs between its releases, and it reads cells as numbers unless told
not to. Its 30 ms of import would be every command's.
"""

from collections.abc import Iterable, Sequence


def plain_table(rows: Iterable[Sequence[str]]) -> list[str]:
    """A line for each of the rows, which have the same number of cells: two spaces apart, none at the end."""
    return ["  ".join(cells).rstrip() for cells in _padded(rows)]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; a bar in a cell is escaped."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    first, *others = _padded(escaped)
    return [f"| {' | '.join(cells)} |" for cells in (first, ["-" * len(cell) for cell in first], *others)]


def _padded(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
