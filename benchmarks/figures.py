"""The figures of a folder: figures.jsonl has a line for each, written as soon as it is known."""

import json
import os
from pathlib import Path
from typing import Any

FIGURES = "figures.jsonl"


def write_figure(folder: Path, figure: dict[str, Any]) -> None:
    """Appends a figure, {"benchmark", "name", "value", "unit", ...}; it is on the disk when this returns."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FIGURES).open("a+b") as file:
        if file.tell():  # a line that a crash cut off stays a line of its own
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read() == b"\n" else b"\n")
        file.write(json.dumps(figure).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """The figures in order; of several with one benchmark and name, the last one. Incomplete lines are left out."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    try:
        lines = (folder / FIGURES).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            figure = json.loads(line)
        except ValueError:
            continue
        found[figure["benchmark"], figure["name"]] = figure
    return list(found.values())
