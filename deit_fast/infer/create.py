"""`create_model`: models by name, as timm's users make them, with or without the weights of a checkpoint."""

import warnings
from pathlib import Path
from typing import Any

from deit_fast.convert.fit import Change, build_initialised, format_changes
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
    """A model by name, for images [B, 3, img_size, img_size] -> logits [B, num_classes], with timm's state dict.

    name: of the model, or of its published weights as `find_weights_row` takes them ("deit3_base_patch16@384:21k").
    pretrained: True for the published weights of that name; or a checkpoint in any format that `load_weights` reads, by
    path, URI or name of published weights. None or False: initial weights. `ema` takes its moving average. Positions
    are resampled and a head of other classes is cut down or initialised anew; a warning says so, and so does the list
    `changes` of the model, of `convert.fit.Change`, which is empty where every weight was taken as it is. num_classes:
    by default the checkpoint's, else 1000. img_size: by default what the name says (384 in "deit3_base_patch16_384"),
    else the checkpoint's, else 224. fields: others of a recipe's model section, such as drop_path; those that say what
    the weights compute (activation, pool, ...) are the checkpoint's by default.
    Raises RecipeError for an unknown name and for fields that the model cannot have, RunError for a checkpoint that
    cannot be read or is of another architecture. Example: `create_model("deit3_base_patch16", img_size=192)`.
    """
    entry, resolution = _resolve(name)
    if pretrained is None or pretrained is False:
        section = _section(entry, 1000 if num_classes is None else num_classes, img_size or resolution, fields)
        model, changes = build_model(section), list[Change]()
    else:
        if pretrained is True:
            row = find_weights_row(name)
            pretrained = name if row is None else str(row.weights_name)  # in full: no path is called so
        weights = open_weights(pretrained, ema)
        theirs = weights.recipe.model
        if name in ARCHITECTURES:  # the name of an entry says no resolution
            resolution = theirs.image_size
        count = (theirs.num_classes or 1000) if num_classes is None else num_classes
        section = _section(entry, count, img_size or resolution, _computed(theirs) | fields)
        model, changes = build_initialised(section, weights)
        if changes:
            warnings.warn("\n".join([f"{pretrained}: fitted to {name}:", *format_changes(changes)]), stacklevel=2)
    model.changes = changes  # type: ignore[assignment]
    return model


def _resolve(name: str) -> tuple[str, int]:
    """The entry that the name of a model, or of published weights, stands for, and the resolution that it implies."""
    row = None if name in ARCHITECTURES or name in ALIASES else find_weights_row(name)
    return resolve_name(name) if row is None else (row.name, row.resolution)


def _section(name: str, num_classes: int, image_size: int, fields: dict[str, Any]) -> Model:
    return parse_model({"name": name, "image_size": image_size, "num_classes": num_classes, **fields})


def _computed(section: Model) -> dict[str, Any]:
    """The fields of a model section without which its weights would compute something else."""
    kept = {key: getattr(section, key) for key in ("position", "pool", "stem", "activation")}
    return {**kept, "layer_scale": section.initial_layer_scale}
