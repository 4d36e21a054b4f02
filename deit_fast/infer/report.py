"""The report of an evaluation: accuracy per class, confusions, most confident mistakes, confidence intervals."""

import csv
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source
from deit_fast.data.sources.identity import identify
from deit_fast.infer.outcomes import Outcomes
from deit_fast.runtime.errors import printable
from deit_fast.runtime.files import atomic_path, write_json

MISTAKES = 200
PICTURE_CLASSES = 100
"""Largest number of classes with a confusion matrix as a table and a picture; larger matrices are sparse files."""
OUTCOMES = "outcomes.npz"
_NAMED_TICKS = 40
_TICK = 32  # most characters of a class's name in the picture


def wilson_interval(hits: int, images: int) -> tuple[float, float]:
    """95 % confidence interval of the accuracy `hits` / `images`, in percent (Wilson's score interval, 1927)."""
    if not images:
        return 0.0, 100.0
    z = 1.959963984540054  # the normal distribution's 97.5th percentile
    share, spread = hits / images, z * z / images
    centre = share + spread / 2
    half = (share * (1 - share) * spread + spread * spread / 4) ** 0.5
    low, high = ((centre + side * half) / (1 + spread) for side in (-1, 1))
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def confusion_matrix(
    labels: NDArray[np.integer], predictions: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """How many images of each class (row) were taken for each class (column): int64 [num_classes, num_classes].

    labels: integers [N]. predictions: int64 [N].
    """
    pairs = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def write_report(folder: Path, source: Source, outcomes: Outcomes, scores: dict[str, Any]) -> None:
    """Writes scores.json, per_class.csv, mistakes.csv and the confusion matrix into `folder`, which is created.

    outcomes.npz has the result for each image: labels, predictions, confidences, in_top5 [N], the names of the classes,
    the digest that identifies the images, and the SHA-256 of a run's checkpoint. Up to 100 classes, the matrix is
    confusion.csv and confusion.png; above, it is confusion.npz in the format of scipy.sparse.load_npz. mistakes.csv has
    the 200 most confident mistakes. Raises OSError.
    """
    _write_csv(folder / "per_class.csv", *_class_rows(source, outcomes))
    _write_csv(folder / "mistakes.csv", *_mistake_rows(source, outcomes))
    num_classes = len(source.classes)
    if num_classes <= PICTURE_CLASSES:
        matrix = confusion_matrix(source.labels, outcomes.predictions, num_classes)
        rows = [[name, *row] for name, row in zip(source.classes, matrix.tolist(), strict=True)]
        _write_csv(folder / "confusion.csv", ["class", *source.classes], rows)
        _draw_confusion(folder / "confusion.png", matrix, source.classes)
    else:
        _write_sparse(folder / "confusion.npz", source.labels, outcomes.predictions, num_classes)
    with atomic_path(folder / OUTCOMES) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, labels=source.labels.astype(np.int64), classes=np.array(source.classes, dtype=str),
                            predictions=outcomes.predictions, confidences=outcomes.confidences,
                            in_top5=outcomes.in_top5, digest=np.array(identify(source).digest),
                            weights=np.array(scores.get("sha256") or ""))  # fmt: skip
    write_json(folder / "scores.json", scores)


def _class_rows(source: Source, outcomes: Outcomes) -> tuple[list[str], Iterable[Sequence[Any]]]:
    """One row per class; accuracies in percent, empty for a class without images."""
    labels, count = source.labels, len(source.classes)
    images = np.bincount(labels, minlength=count).tolist()
    hits = np.bincount(labels[outcomes.predictions == labels], minlength=count).tolist()
    hits5 = np.bincount(labels[outcomes.in_top5], minlength=count).tolist()
    header = ["class", "name", "images", "top1", "top1_low", "top1_high", "top5"]
    rows = [
        [label, source.classes[label], images[label]]
        + [
            f"{value:.2f}" if images[label] else ""
            for value in (
                100 * hits[label] / max(images[label], 1),
                *wilson_interval(hits[label], images[label]),
                100 * hits5[label] / max(images[label], 1),
            )
        ]
        for label in range(count)
    ]
    return header, rows


def _mistake_rows(source: Source, outcomes: Outcomes) -> tuple[list[str], Iterable[Sequence[Any]]]:
    """The most confident mistakes, in descending order of confidence."""
    wrong = np.flatnonzero(outcomes.predictions != source.labels)
    chosen = wrong[np.argsort(-outcomes.confidences[wrong], kind="stable")][:MISTAKES].tolist()
    rows = [
        [
            source.name(index),
            source.classes[source.labels[index]],
            source.classes[outcomes.predictions[index]],
            f"{outcomes.confidences[index]:.6f}",
        ]
        for index in chosen
    ]
    return ["file", "label", "prediction", "confidence"], rows


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _write_sparse(path: Path, labels: NDArray[np.integer], predictions: NDArray[np.int64], num_classes: int) -> None:
    pairs, counts = np.unique(labels.astype(np.int64) * num_classes + predictions, return_counts=True)
    row, col = np.divmod(pairs, num_classes)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        shape = (num_classes, num_classes)
        np.savez_compressed(file, format=np.array(b"coo"), shape=np.array(shape), row=row, col=col, data=counts)


def _draw_confusion(path: Path, matrix: NDArray[np.int64], classes: list[str]) -> None:
    """A picture of the confusion matrix: the fraction of each class's images (row) in each column.

    Names of classes are shown as they are, not as formulas; long ones are cut. Letters that matplotlib's font lacks are
    boxes.
    """
    from matplotlib.figure import Figure  # imported here: it takes half a second

    count = len(classes)
    side = min(14.0, 3 + 0.35 * count)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure.colorbar(axes.imshow(shares, cmap="viridis", vmin=0, vmax=100), label="% of the class's images", shrink=0.8)
    axes.set(xlabel="prediction", ylabel="label")
    if count <= _NAMED_TICKS:
        names = [name if len(name) <= _TICK else f"{name[: _TICK - 1]}…" for name in map(printable, classes)]
        axes.set_xticks(range(count), names, rotation=90, parse_math=False)
        axes.set_yticks(range(count), names, parse_math=False)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(temporary, dpi=110, format="png")
