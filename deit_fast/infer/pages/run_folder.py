"""Reads the files of a run: recipe, metrics, result, and starts. Only the recipe has to exist."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.log_sinks.json_lines import Record, read_metrics
from deit_fast.runtime.provenance import STARTS


@dataclass(frozen=True)
class RunFolder:
    """A run in the form of its files."""

    path: Path
    """As the user wrote it; absolute if it ends in no name, as "." and ".." do."""
    recipe: Recipe
    records: list[Record]
    """Records of metrics.jsonl, in order: {"kind": "train" or "eval", "step": ...}."""
    result: dict[str, Any] | None
    """result.json; None for a run that has not ended."""
    starts: list[dict[str, Any]]
    """How its processes were started, oldest start first (runtime/provenance.py)."""

    def of_kind(self, kind: str) -> list[Record]:
        """The records of one kind."""
        return [record for record in self.records if record.get("kind") == kind]

    @property
    def steps_per_epoch(self) -> float | None:
        """Computed from the last record with a step and an epoch; None without one."""
        known = [(each["step"], epoch) for each in self.of_kind("train") if (epoch := finite(each, "epoch"))]
        return known[-1][0] / known[-1][1] if known else None

    def epoch_of(self, record: Record) -> float | None:
        """The number of epochs that had been trained at a record."""
        if (epoch := finite(record, "epoch")) is not None:
            return epoch
        per_epoch = self.steps_per_epoch
        return record["step"] / per_epoch if per_epoch else None


def read_run(path: Path) -> RunFolder:
    """Reads a run's folder. Raises RunError where it is no run's, RecipeError where its recipe is unreadable."""
    path = path.parent if path.name == "checkpoints" else path
    path = path if path.name not in ("", "..") else Path(os.path.abspath(path))
    recipe = path / "recipe.json"
    if not recipe.is_file():
        raise RunError(f"{path}: expected the folder of a run, with recipe.json in it")
    return RunFolder(
        path, get_recipe(str(recipe)), read_metrics(path / "metrics.jsonl"), _read(path / "result.json"),
        [each for line in _lines(path / STARTS) if isinstance(each := _parse(line), dict)],
    )  # fmt: skip


def finite(record: Mapping[str, Any], key: str) -> float | None:
    """A figure of a record if it is a finite number, else None."""
    value = record.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _read(path: Path) -> dict[str, Any] | None:
    content = _parse("\n".join(_lines(path)))
    return content if isinstance(content, dict) else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
