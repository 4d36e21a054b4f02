"""What a run left in its folder: recipe, metrics, result, and how it was started. Only the recipe has to be there."""

import json
import math
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
    """A run as its files tell it."""

    path: Path
    recipe: Recipe
    records: list[Record]
    """Of metrics.jsonl, in order: {"kind": "train" or "eval", "step": ...}."""
    result: dict[str, Any] | None
    """result.json; None of a run that has not ended."""
    starts: list[dict[str, Any]]
    """How its processes were started, the first first (runtime/provenance.py)."""

    def of_kind(self, kind: str) -> list[Record]:
        """The records of one kind."""
        return [record for record in self.records if record.get("kind") == kind]

    @property
    def steps_per_epoch(self) -> float | None:
        """By the last record that says at which step and epoch it is; None before the first."""
        known = [each for each in self.of_kind("train") if each.get("epoch")]
        return known[-1]["step"] / known[-1]["epoch"] if known else None

    def epoch_of(self, record: Record) -> float | None:
        """How many epochs had been trained at a record."""
        if isinstance(record.get("epoch"), int | float):
            return float(record["epoch"])
        per_epoch = self.steps_per_epoch
        return record["step"] / per_epoch if per_epoch else None


def read_run(path: Path) -> RunFolder:
    """Reads a run's folder. Raises RunError where it is none, RecipeError where its recipe cannot be read."""
    path = path.parent if path.name == "checkpoints" else path
    recipe = path / "recipe.json"
    if not recipe.is_file():
        raise RunError(f"{path}: expected the folder of a run, with recipe.json in it")
    return RunFolder(
        path, get_recipe(str(recipe)), read_metrics(path / "metrics.jsonl"), _read(path / "result.json"),
        [each for line in _lines(path / STARTS) if isinstance(each := _parse(line), dict)],
    )  # fmt: skip


def finite(record: Mapping[str, Any], key: str) -> float | None:
    """A record's figure where it is a finite number."""
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
