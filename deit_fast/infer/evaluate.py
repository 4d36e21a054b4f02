"""Top-1, top-5 and loss over a data set: every image exactly once, at any world size."""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deit_fast.convert.detect import load_weights
from deit_fast.convert.fit import build_initialised
from deit_fast.convert.heads import maps_to_1k
from deit_fast.data.loader.batches import Batch, EvalLoader
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.classes import check_same_classes, resolve_classes
from deit_fast.data.sources.open import open_source
from deit_fast.infer.precision import average_mirrored, build_predictor, choose_dtype
from deit_fast.infer.real_labels import RealLabels
from deit_fast.infer.report import OutcomeTable, wilson_interval, write_report
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import RecipeError
from deit_fast.runtime.hardware import cpu_threads
from deit_fast.runtime.object_store import fetch_file
from deit_fast.runtime.progress import progress
from deit_fast.runtime.world import World, join_world, leave_world

EVAL_BATCH = 256


@dataclass(frozen=True)
class Scores:
    """Accuracies in percent, mean loss, and how many images at what rate over all processes."""

    top1: float
    top5: float
    loss: float
    images: int
    images_per_second: float


def build_eval_loader(recipe: Recipe, source: Source, world: World) -> EvalLoader:
    """This process's share of the source in batches of EVAL_BATCH, or fewer where there are fewer images."""
    batch = min(EVAL_BATCH, -(-len(source) // world.size))
    size = recipe.model.image_size
    return EvalLoader(source, recipe.data, size, batch, world.device, cpu_threads(), world.rank, world.size)


@torch.no_grad()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    loader: EvalLoader,
    world: World,
    watch: Callable[[Batch, Tensor], None] | None = None,
) -> Scores:
    """Scores of `predict` (uint8 images [B, 3, S, S] -> logits [B, K]) on this and all other processes' images.

    watch: called with each batch of this process and the logits of its valid images, fp32 [batch.valid, K].
    """
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)  # top-1, top-5, loss, images
    start, timed = time.perf_counter(), 0
    for number, batch in enumerate(progress(loader, len(loader), "evaluate", world.is_main)):
        logits = predict(batch.images)[: batch.valid].float()
        labels = batch.labels[: batch.valid]
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        images = torch.full_like(loss, batch.valid)
        sums += torch.stack([ranked[:, 0].sum(), ranked.sum(), loss, images]).to(sums.dtype)
        if watch is not None:
            watch(batch, logits)
        if number == 0 and len(loader) > 1:  # the first batch built the pipeline, and compiled
            start, timed = time.perf_counter(), batch.valid
    top1, top5, loss_sum, count = world.sum(sums).tolist()
    rate = (count - timed * world.size) / (time.perf_counter() - start)
    return Scores(100 * top1 / count, 100 * top5 / count, loss_sum / count, int(count), rate)


def evaluate_checkpoint(
    checkpoint: str | Path,
    data: str,
    overrides: Iterable[str] = (),
    ema: bool = False,
    flip: bool = False,
    real: Path | None = None,
    report: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint on a data set, with its own recipe or one changed by section.key=value words.

    Any format that load_weights reads; a foreign file's recipe has the published crop ratio of its family. The data's
    classes have to be the checkpoint's, or ImageNet-1k's of a checkpoint of ImageNet-21k (model.num_classes=1000);
    another model.image_size resamples position embeddings. flip: the logits are the mean of those of an image and of
    its mirror image. real: the real.json of ImageNet-ReaL, for a score by its labels too. report: a folder for
    `write_report`. Returns Scores' fields with 95 % confidence intervals, the checkpoint, its format, the resolution,
    minutes, and what was changed at loading. Raises RecipeError, DataError or RunError.
    """
    start = time.perf_counter()
    weights = load_weights(fetch_file(checkpoint), ema)
    recipe = weights.recipe.override(overrides)
    own, asked = weights.recipe.model.classes, recipe.model.num_classes
    maps = asked is not None and maps_to_1k(own, asked)
    if asked not in (own, None) and not maps:
        raise RecipeError(f"model.num_classes={asked}: expected {own}, which {checkpoint} knows")
    source = open_source(data, "val", recipe.data.category)
    names = weights.classes if weights.classes and not maps else [str(label) for label in range(asked or own)]
    check_same_classes(source, names, f"the classes of {checkpoint}")
    recipe = resolve_classes(recipe, source)
    real_labels = RealLabels(real, source) if real else None
    world = join_world()
    if report is not None and world.is_main:
        report.mkdir(parents=True, exist_ok=True)  # fails now rather than after the evaluation
    dtype = choose_dtype(recipe.run, world.device)
    model, changes = build_initialised(recipe.model, weights)
    model = model.to(world.device).to(memory_format=torch.channels_last)
    predict = build_predictor(model.eval(), recipe, dtype, world)
    loader = build_eval_loader(recipe, source, world)
    table = OutcomeTable(len(source), world.device)
    try:
        scores = evaluate(average_mirrored(predict) if flip else predict, loader, world, table.add)
    finally:
        loader.close()
    outcomes = table.gather(world)
    leave_world()
    result = {
        "checkpoint": str(checkpoint),
        "format": weights.source,
        "recipe": recipe.name,
        "weights": "ema" if ema else "model",
        "image_size": recipe.model.image_size,
        "flip": flip,
        **asdict(scores),
        "top1_interval": list(wilson_interval(int((outcomes.predictions == source.labels).sum()), len(source))),
        "top5_interval": list(wilson_interval(int(outcomes.in_top5.sum()), len(source))),
        **(real_labels.scores(outcomes.predictions) if real_labels else {}),
        "minutes": (time.perf_counter() - start) / 60,
        "changes": [str(change) for change in changes],
    }
    if report is not None and world.is_main:
        write_report(report, source, outcomes, result)
    return result
