"""torch.export's .pt2: normalised float images [B, 3, S, S] -> logits [B, K], with free B. Needs only torch."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from deit_fast.convert.formats import Export
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.files import atomic_path

_BATCH = 2  # batch size of the example: torch.export would make a size of 1 a constant


def example_images(recipe: Recipe) -> Tensor:
    """Float images [2, 3, S, S] of the recipe's size S, px, by which the shapes of a program are traced."""
    return torch.zeros(_BATCH, 3, recipe.model.image_size, recipe.model.image_size)


def describe_input(recipe: Recipe) -> str:
    """The preprocessing of images for a program, in one line."""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (recipe.data.mean, recipe.data.std))
    size = recipe.model.image_size
    return f"input: images [batch, 3, {size}, {size}] in [0, 1], less ({mean}), divided by ({std})"


def program_metadata(recipe: Recipe, classes: list[str] | None) -> dict[str, str]:
    """Facts that a user of a program needs, as texts by name; lists and numbers are in JSON.

    Preprocessing resizes images so that their shorter side is image_size / crop_ratio px, and cuts out their centre.
    """
    known = {
        "image_size": recipe.model.image_size,
        "crop_ratio": recipe.data.eval_crop_ratio,
        "mean": recipe.data.mean,
        "std": recipe.data.std,
    }
    texts = {"model": recipe.model.name, "interpolation": recipe.data.eval_interpolation}
    return {
        **texts,
        **{name: json.dumps(value) for name, value in known.items()},
        **({"classes": json.dumps(classes)} if classes is not None else {}),
    }


def _write(model: nn.Module, recipe: Recipe, classes: list[str] | None, path: Path) -> list[str]:
    """Writes a file that `torch.export.load(path).module()` turns into a module."""
    program = torch.export.export(model, (example_images(recipe),), dynamic_shapes=({0: Dim("batch", min=1)},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(program_metadata(recipe, classes)))
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return [describe_input(recipe)]


def _reload(path: Path) -> Callable[[Tensor], Tensor]:
    with open(path, "rb") as file:
        return torch.export.load(io.BytesIO(file.read())).module()


EXPORT = Export("program", ".pt2", _write, _reload)
