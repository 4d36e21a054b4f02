"""Evaluates the metrics of a model on a data set, using every image exactly once at any world size."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deit_fast.convert.detect import Weights
from deit_fast.convert.fit import build_initialised, need_head
from deit_fast.convert.imagenet21k import maps_to_1k
from deit_fast.convert.pretrained import open_weights
from deit_fast.data.loader.batches import EvalLoader
from deit_fast.data.loader.streaming_plan import disk_limit
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.class_subset import CLASS_CHOICES, ClassChoice, choose_classes
from deit_fast.infer.metrics import Metric, Predicted, Totals, build_metrics, find_metrics
from deit_fast.infer.outcomes import Outcomes, outcome_rows, read_outcomes
from deit_fast.infer.precision import average_mirrored, build_predictor, choose_dtype, mirrored_notes
from deit_fast.infer.report import wilson_interval, write_report
from deit_fast.infer.scored_images import open_scored
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import RecipeError, RunError, StoppedError, printable
from deit_fast.runtime.hardware import cpu_threads
from deit_fast.runtime.patience import patience
from deit_fast.runtime.progress import progress
from deit_fast.runtime.waiting import share_cores
from deit_fast.runtime.world import World, join_world, leave_world
from deit_fast.zoo.class_names import default_classes

EVAL_BATCH = 256


@dataclass(frozen=True)
class Scores:
    """The results of an evaluation over all images and all processes."""

    values: dict[str, float]
    """The metrics' figures by name: top1 and top5 in percent, loss in nats, ..."""
    totals: dict[str, Totals]
    """The sum of each metric over all images, by the metric's name: fp64 [...], in the metric's layout."""
    images: int
    """Number of images evaluated; each counts once."""
    images_per_second: float
    """Images per second over all processes; the first of several batches is not timed."""


@dataclass(frozen=True)
class Scored:
    """An evaluation of a checkpoint, with its images and the result for each image."""

    result: dict[str, Any]
    """The result of `evaluate_checkpoint`."""
    source: Source
    """The images that were scored."""
    outcomes: Outcomes


def build_eval_loader(recipe: Recipe, source: Source, world: World, backend: str | None = None) -> EvalLoader:
    """This process's share of the source in batches of EVAL_BATCH, or smaller ones if there are fewer images.

    A source that fetches shards is told how much of the disk it may use. backend: what makes the pixels, by default
    run.image_backend.
    """
    source.limit_cache(disk_limit(recipe.data))
    batch = min(EVAL_BATCH, -(-len(source) // world.size))
    return EvalLoader(
        source, recipe.data, recipe.model.image_size, batch, world.device, cpu_threads(), world.rank, world.size,
        patience(recipe.run.hang_timeout), world.node_ranks, backend or recipe.run.image_backend,
    )  # fmt: skip


@torch.no_grad()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    loader: EvalLoader,
    world: World,
    watch: Callable[[], bool] | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Scores:
    """Scores of `predict` (uint8 images [B, 3, S, S] -> logits [B, K]) on the images of this and all other processes.

    watch: called after each batch of this process; if it returns True, the evaluation ends in all processes together,
    with StoppedError. metrics: by default those of every evaluation.
    """
    metrics = find_metrics() if metrics is None else metrics
    sums: dict[str, Tensor] = {}
    start, images, timed, stopped = time.perf_counter(), 0, 0, False
    for number, batch in enumerate(progress(loader, len(loader), "evaluate", world.is_main)):
        valid = batch.valid
        logits = predict(batch.images)[:valid].float()
        seen = Predicted(logits, batch.labels[:valid], batch.indices[:valid], batch.images[:valid])
        for name, metric in metrics.items():
            sums[name] = sums.get(name, 0) + metric.sums(seen).double()
        images += valid
        if stopped := watch is not None and watch():
            break
        if number == 0 and len(loader) > 1:  # the first batch includes building the pipeline and compiling
            start, timed = time.perf_counter(), valid
    if watch is not None and world.any(stopped):
        raise StoppedError("stopped by a signal during an evaluation; run again to go on")
    totals = {name: world.sum(each).cpu().numpy() for name, each in sums.items()}
    count = int(world.sum(torch.tensor(images, device=world.device)))
    rate = (count - timed * world.size) / (time.perf_counter() - start)
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        found = metric.values(totals[name], count)
        assert not found.keys() & values.keys(), f"metric {name}: {found.keys() & values.keys()} is another's"
        values |= found
    return Scores(values, totals, count, rate)


def evaluate_checkpoint(
    checkpoint: str | Path,
    data: str | Path | None = None,
    overrides: Iterable[str] = (),
    ema: bool = False,
    flip: bool = False,
    metrics: Iterable[str] = (),
    report: str | Path | None = None,
    labels: str | Path | None = None,
    classes: ClassChoice | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint on a data set, with its own recipe, changed by section.key=value words (`overrides`).

    checkpoint: any format that load_weights reads, by path, URI or name of published weights. For a run's folder it is
    the best checkpoint, else the last. A foreign file's recipe has the published crop ratio of its family. ema: takes
    the moving average.
    data: the validation split there is evaluated. If there is none, the images that the checkpoint's run held out of
    this data set are evaluated, else all images; `notes` say which. Without `data`, the images that the run held out
    are evaluated.
    overrides: for example model.image_size, for which position embeddings are resampled.
    flip: averages the logits of an image and its mirror image.
    metrics: NAME=VALUE words for those in `infer.metrics` that are optional, such as real=real.json.
    report: a folder for `write_report`. labels: the file of labels of images without class folders, if it is not beside
    them.
    classes: needed if the data have only some of the checkpoint's classes, matched by name: whether predictions are
    chosen among the "data"'s classes or among "all". Otherwise the classes have to be the checkpoint's; or they are
    ImageNet-1k's and the checkpoint is of ImageNet-21k (model.num_classes=1000).

    In a program that torchrun started, all processes have to call this: each evaluates its share of the images.

    Returns the metrics' values, top-1 and top-5 with 95 % confidence intervals, the number of classes chosen among, the
    checkpoint, its format, the evaluated images, the resolution, minutes, `changes` made at loading, and `notes` on
    facts that were read from text beside the weights. Raises RecipeError, DataError or RunError, the last also for
    logits that are not finite. Example, with the function's name in deit_fast: `evaluate("runs/digits",
    "digits")["top1"]`.
    """
    if classes is not None and classes not in CLASS_CHOICES:
        raise RunError(f"classes={classes!r}: expected {' or '.join(map(repr, CLASS_CHOICES))}")
    weights = open_weights(checkpoint, ema)
    return score_weights(weights, checkpoint, data, overrides, ema, flip, metrics, report, labels, classes).result


def score_weights(
    weights: Weights,
    checkpoint: str | Path,
    data: str | Path | None = None,
    overrides: Iterable[str] = (),
    ema: bool = False,
    flip: bool = False,
    metrics: Iterable[str] = (),
    report: str | Path | None = None,
    labels: str | Path | None = None,
    classes: ClassChoice | None = None,
) -> Scored:
    """`evaluate_checkpoint` for weights that were read from `checkpoint`. ema: whether they are the moving average."""
    start = time.perf_counter()
    report = Path(report) if report is not None else None
    recipe = weights.recipe.taken_over(overrides)
    need_head(weights, recipe)
    own, asked = weights.recipe.model.num_classes or recipe.model.classes, recipe.model.num_classes
    maps = asked is not None and maps_to_1k(own, asked)
    if asked not in (own, None) and not maps:
        raise RecipeError(f"model.num_classes={asked}: expected {own}, which {checkpoint} knows")
    place = str(data) if data is not None else None
    source, which = open_scored(str(checkpoint), weights, place, recipe.data.category, labels)
    columns = choose_classes(source, _class_names(weights, asked or own, source), classes, str(checkpoint))
    if asked is None:
        recipe = recipe.derive(model={"num_classes": own})
    asked_for = build_metrics(metrics, source)
    world = join_world(wanted=recipe.run.device)
    if report is not None and world.is_main:
        report.mkdir(parents=True, exist_ok=True)  # fails now rather than after the evaluation
    dtype = choose_dtype(recipe.run, world.device)
    model, changes = build_initialised(recipe.model, weights)
    model = model.to(world.device).to(memory_format=torch.channels_last)
    predict = build_predictor(model.eval(), recipe, dtype, world)
    loader = build_eval_loader(recipe, source, world)
    chosen = {**find_metrics(), **asked_for, "outcomes": outcome_rows(len(source))}
    predict = average_mirrored(predict) if flip else predict
    try:
        with share_cores(world.device):
            scores = evaluate(
                predict if columns is None else _of_columns(predict, columns), loader, world, metrics=chosen
            )
    finally:
        loader.close()
    leave_world(world)
    outcomes = read_outcomes(scores.totals["outcomes"])
    if lost := np.flatnonzero(outcomes.predictions < 0).tolist():
        raise RunError(
            f"{checkpoint}: the logits of {len(lost)} of {len(source)} images are not finite, the first "
            f"{printable(source.name(lost[0]))}: expected useful weights"
        )
    result = {
        "checkpoint": str(checkpoint),
        "data": source.place,
        "format": weights.source,
        "recipe": recipe.name,
        "weights": "ema" if ema else "model",
        "parameters": sum(each.numel() for each in model.parameters()),
        "image_size": recipe.model.image_size,
        "crop_ratio": recipe.data.eval_crop_ratio,
        "interpolation": recipe.data.eval_interpolation,
        "flip": flip,
        "classes": len(source.classes),
        "metrics": list(scores.values),
        **scores.values,
        "images": scores.images,
        "images_per_second": scores.images_per_second,
        "top1_interval": list(wilson_interval(int((outcomes.predictions == source.labels).sum()), len(source))),
        "top5_interval": list(wilson_interval(int(outcomes.in_top5.sum()), len(source))),
        "minutes": (time.perf_counter() - start) / 60,
        "changes": [str(change) for change in changes],
        "notes": [*which, *weights.said, *mirrored_notes(weights.recipe, flip)],
    }
    if report is not None and world.is_main:
        write_report(report, source, outcomes, result)
    return Scored(result, source, outcomes)


def _class_names(weights: Weights, count: int, source: Source) -> list[str]:
    """The names of the model's `count` classes; by default ImageNet's.

    A file without class names takes the source's, in their order, if the source has as many classes.
    """
    if weights.classes and len(weights.classes) == count:
        return weights.classes
    return list(source.classes) if len(source.classes) == count else default_classes(count)


def _of_columns(predict: Callable[[Tensor], Tensor], columns: NDArray[np.int64]) -> Callable[[Tensor], Tensor]:
    """`predict` (images [B, 3, S, S] -> logits [B, K]) with only the logits of the classes `columns`, int64 [k]."""
    return lambda images: predict(images)[:, torch.from_numpy(columns).to(images.device)]
