"""`create_model`: models by name, for users of timm's function, with or without the weights of a checkpoint."""

import warnings
from pathlib import Path
from typing import Any

from deit_fast.convert.fit import Change, build_initialised, far_resolution, format_changes
from deit_fast.convert.pretrained import open_weights
from deit_fast.models.build import ImageModel, build_model
from deit_fast.recipe.schema import parse_model
from deit_fast.recipe.sections import Model
from deit_fast.zoo import ARCHITECTURES, find_weights_row, resolve_name
from deit_fast.zoo.architectures import ALIASES


def create_model(
    name: str,
    pretrained: str | Path | bool | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
    *,
    ema: bool = False,
    **fields: Any,
) -> ImageModel:
    """A model by name: images [B, 3, img_size, img_size] -> logits [B, num_classes], with timm's state dict.

    name: of the model, or of its published weights as in `find_weights_row` ("deit3_base_patch16@384:21k"). pretrained:
    True for the published weights of that name; or a checkpoint in any format that `load_weights` reads, by path, URI
    or name of published weights; None or False for initial weights. ema: takes the checkpoint's moving average.
    num_classes: by default the checkpoint's, else 1000. img_size: by default the one in the name (384 in
    "deit3_base_patch16_384"), else the checkpoint's, else 224. fields: other fields of a recipe's model section, such
    as drop_path. Fields that the weights' results depend on (activation, pool, ...) are the checkpoint's by default.

    Position embeddings are resampled, and a head for other classes is cut down or initialised anew. A warning says so,
    and the model's list `changes` (of `convert.fit.Change`) too; the list is empty if every weight was taken unchanged.

    Raises RecipeError for an unknown name and for fields that the model does not support, RunError for a checkpoint
    that is unreadable or of another architecture. Example: `create_model("deit3_base_patch16", img_size=192)`.
    """
    entry, resolution = _resolve(name)
    if pretrained is None or pretrained is False:
        section = _section(entry, 1000 if num_classes is None else num_classes, img_size or resolution, fields)
        model, changes = build_model(section), list[Change]()
    else:
        if pretrained is True:
            row = find_weights_row(name)
            pretrained = name if row is None else str(row.weights_name)  # the full name, which no path equals
        weights = open_weights(pretrained, ema)
        theirs = weights.recipe.model
        if name in ARCHITECTURES:  # an entry's own name implies no resolution
            resolution = theirs.image_size
        count = (theirs.num_classes or 1000) if num_classes is None else num_classes
        section = _section(entry, count, img_size or resolution, _computed(theirs) | fields)
        model, changes = build_initialised(section, weights)
        if changes:
            warnings.warn("\n".join([f"{pretrained}: fitted to {name}:", *far_resolution(section, weights),
                                     *format_changes(changes)]), stacklevel=2)  # fmt: skip
    model.changes = changes  # type: ignore[assignment]
    return model


def _resolve(name: str) -> tuple[str, int]:
    """The entry for the name of a model or of published weights, and the resolution that the name implies."""
    row = None if name in ARCHITECTURES or name in ALIASES else find_weights_row(name)
    return resolve_name(name) if row is None else (row.name, row.resolution)


def _section(name: str, num_classes: int, image_size: int, fields: dict[str, Any]) -> Model:
    return parse_model({"name": name, "image_size": image_size, "num_classes": num_classes, **fields})


def _computed(section: Model) -> dict[str, Any]:
    """The fields of a model section on which the results of its weights depend."""
    kept = {key: getattr(section, key) for key in ("position", "pool", "stem", "activation")}
    return {**kept, "layer_scale": section.initial_layer_scale}
