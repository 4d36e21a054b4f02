"""The README.md of a published model: metadata for model hubs, how to use the model, and how it was trained."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from deit_fast.convert.formats.lazy_tensor import BadFileError
from deit_fast.convert.locate import find_weights
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import printable
from deit_fast.zoo import find_architecture

_MARKUP = re.compile(r"[\\`*\[\]]|(?<![^\W_])_|_(?![^\W_])")  # Markdown's; the underscore in snake_case is text
_NAMED_CLASSES = 50  # a model with more has them in config.json only


def model_card(
    recipe: Recipe,
    classes: list[str] | None,
    parameters: int,
    place: str = "local-dir:FOLDER",
    scores: Mapping[str, Any] | None = None,
) -> str:
    """Markdown, preceded by metadata, for the folder that `timm.create_model(PLACE, pretrained=True)` loads.

    place: in timm's form, hf-hub:OWNER/NAME or local-dir:FOLDER. scores: a run's result, with top1 and top5 in percent;
    without them the card has no scores.
    """
    model, data = recipe.model, recipe.data
    size, classified = model.image_size, model.classes
    shorter = int(size / data.eval_crop_ratio)
    entry = find_architecture(model.name)
    lines = [
        f"# {model.name}, {size} px, {classified:,} classes",
        "",
        f"A vision transformer for image classification: {parameters / 1e6:,.1f} M parameters, {entry.depth} blocks, "
        f"images of {size} x {size} px. The weights were written by deit_fast.",
        "",
        "```python",
        "import timm",
        "",
        f'model = timm.create_model("{place}", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)",
        "```",
        "",
        f"Images are resized to {shorter} px on their shorter side ({data.eval_interpolation}), cut to the central "
        f"{size} x {size} px, scaled to [0, 1], less ({_numbers(data.mean)}) and divided by ({_numbers(data.std)}).",
        "",
        f"Recipe: `{recipe.name}`, with `model.image_size={size}`, `schedule.epochs={recipe.schedule.epochs:g}`.",
        *(["", " ".join(about.split())] if (about := recipe.description.partition("\n")[2]) else []),
    ]
    if found := _accuracies(scores):
        lines += [
            "",
            "| validation | % |",
            "|---|---|",
            *(f"| {name} | {value:.2f} |" for name, value in found.items()),
        ]
    if classes is not None:
        shown = ", ".join(_as_markdown(name) for name in classes[:_NAMED_CLASSES])
        more = f", and {len(classes) - _NAMED_CLASSES:,} more in config.json" if len(classes) > _NAMED_CLASSES else ""
        lines += ["", f"Classes: {shown}{more}."]
    results = [
        EvalResult(
            task_type="image-classification", dataset_type="imagefolder", dataset_name="validation images of the run",
            metric_type="accuracy", metric_value=round(value, 2), metric_name=name,
        )
        for name, value in found.items()
    ]  # fmt: skip
    metadata = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "vision-transformer", "deit_fast"],
        model_name=model.name,
        eval_results=results or None,
    )
    return "\n".join(["---", metadata.to_yaml(), "---", "", *lines, ""])


def read_scores(source: str | Path, ema: bool = False) -> dict[str, Any] | None:
    """Scores of the weights in `source`, a run's folder or checkpoint, by the run's result.json; None where unknown.

    ema: of the moving average of the weights. Of a best checkpoint that is not the last one, only top1 is known.
    """
    try:
        weights = find_weights(Path(source))
        content = json.loads((weights.parent.parent / "result.json").read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            return None
        if weights.samefile(weights.with_name("last.pt")):
            prefix = "ema_" if ema else ""
            return {key: content.get(f"{prefix}{key}") for key in ("top1", "top5")}
        if weights.samefile(weights.with_name("best.pt")) and not ema:
            return {"top1": content.get("best_top1")}
    except (BadFileError, OSError, ValueError):
        pass
    return None


def _accuracies(scores: Mapping[str, Any] | None) -> dict[str, float]:
    names = {"top1": "top-1 accuracy", "top5": "top-5 accuracy"}
    found = {shown: (scores or {}).get(key) for key, shown in names.items()}
    return {shown: float(value) for shown, value in found.items() if isinstance(value, int | float)}


def _as_markdown(name: str) -> str:
    """Markdown that shows a class's name as it is."""
    return _MARKUP.sub(r"\\\g<0>", html.escape(printable(name), quote=False))


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
