"""The zoo as a table of text or as JSON."""

from collections.abc import Iterable
from dataclasses import asdict

from deit_fast.runtime.files import json_text
from deit_fast.runtime.table import plain_table
from deit_fast.zoo.architectures import ARCHITECTURES
from deit_fast.zoo.family import Published
from deit_fast.zoo.published import find_published

_HEAD = ("name", "px", "params, M", "GFLOPs", "im/s", "memory, MB", "acc@1", "acc@1 V2", "trained on",
         "weights by name", "address")  # fmt: skip


def zoo_as_text(names: Iterable[str]) -> str:
    """The published rows of the entries `names`, in columns; "-" means not published."""
    return "\n".join(plain_table([_HEAD, *map(_cells, find_published(names))]))


def zoo_as_json(names: Iterable[str]) -> str:
    """The same rows as a list of objects, each with its architecture."""
    rows = find_published(names)
    more = [{"weights_name": row.weights_name, "architecture": asdict(ARCHITECTURES[row.name])} for row in rows]
    return json_text([asdict(row) | each for row, each in zip(rows, more, strict=True)])


def _cells(row: Published) -> tuple[str, ...]:
    figures = (row.images_per_second, row.peak_memory_mb, row.top1, row.top1_v2, row.training, row.weights_name,
               row.weights)  # fmt: skip
    return (row.name, str(row.resolution), f"{row.params_m:.2f}", f"{row.gmacs:.2f}",
            *("-" if figure is None else str(figure) for figure in figures))  # fmt: skip
