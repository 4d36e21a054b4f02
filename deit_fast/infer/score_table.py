"""The results of `evaluate` for a person: a sentence, a table of several checkpoints or data sets, timm's CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deit_fast.runtime.files import atomic_path
from deit_fast.runtime.table import plain_table

Result = dict[str, Any]
"""The result of `evaluate_checkpoint`."""

_TOLD = {"top1", "top5", "loss"}
_CSV = ("model", "data", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation",
        "images", "top1_low", "top1_high")  # fmt: skip
"""Columns: those of timm's results-*.csv, and further ones of this project."""


def describe_scores(result: Result) -> str:
    """One line: top-1 with its 95 % confidence interval, top-5, loss, optional metrics, and the evaluated images."""
    low, high = result["top1_interval"]
    top5 = f", top-5 {result['top5']:.2f} %" if result["classes"] > 5 else ""  # with five classes top-5 is always 100
    others = "".join(f", {name} {value:.2f}" for name, value in _others(result).items())
    how = ", with the mirror image" if result["flip"] else ""
    return (
        f"top-1 {result['top1']:.2f} % ({low:.1f} to {high:.1f}){top5}, loss {result['loss']:.3f}{others}: "
        f"{result['images']:,} images of {result['data']} at {result['image_size']} px{how}, {_weights(result)}"
    )


def score_lines(results: Sequence[Result]) -> list[str]:
    """A table with a header and a row for each result."""
    others = list(dict.fromkeys(name for result in results for name in _others(result)))
    rows = [
        [
            _weights(result),
            result["data"],
            f"{result['image_size']}",
            f"{result['images']:,}",
            f"{result['top1']:.2f}",
            "{:.1f} to {:.1f}".format(*result["top1_interval"]),
            f"{result['top5']:.2f}",
            f"{result['loss']:.3f}",
            *(f"{result[name]:.2f}" if name in result else "" for name in others),
        ]
        for result in results
    ]
    heads = ["checkpoint", "data", "px", "images", "top-1 %", "95 % interval", "top-5 %", "loss", *others]
    return plain_table([heads, *rows])


def write_scores(path: Path, results: Sequence[Result]) -> None:
    """Writes a CSV with the columns of timm's results: param_count in millions, errors and accuracies in percent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    others = list(dict.fromkeys(name for result in results for name in _others(result)))
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_CSV, *others])
        for result in results:
            top1, top5 = result["top1"], result["top5"]
            scores = [f"{value:.3f}" for value in (top1, 100 - top1, top5, 100 - top5)]
            size, crop = result["image_size"], f"{result['crop_ratio']:g}"
            interval = [f"{value:.3f}" for value in result["top1_interval"]]
            writer.writerow([_weights(result), result["data"], *scores, f"{result['parameters'] / 1e6:.2f}", size, crop,
                             result["interpolation"], result["images"], *interval,
                             *(f"{result[name]:.3f}" if name in result else "" for name in others)])  # fmt: skip


def _weights(result: Result) -> str:
    return result["checkpoint"] + (" (average)" if result["weights"] == "ema" else "")


def _others(result: Result) -> dict[str, float]:
    """The figures of optional metrics, such as real_top1."""
    return {name: result[name] for name in result["metrics"] if name not in _TOLD}
