"""`deit-fast convert`: writes a checkpoint in another format, reads it back and compares the logits."""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from deit_fast.convert.detect import load_weights
from deit_fast.convert.fit import Change, build_initialised, need_head
from deit_fast.convert.formats import Export
from deit_fast.convert.formats.lazy_tensor import BadFileError
from deit_fast.convert.locate import CHECKPOINTS
from deit_fast.convert.model_card import model_card, read_scores
from deit_fast.convert.pretrained import open_weights
from deit_fast.runtime.discover import discover
from deit_fast.runtime.errors import RunError, check_utf8, suggest

CHECK_BATCH = 3  # unlike the batch of a program's example, which is 2
_FOLDER = "timm"  # format of a destination without a suffix


@dataclass(frozen=True)
class Exported:
    """A written checkpoint."""

    path: Path
    format: str
    """Name of the written format, for --format."""
    source: str
    """Format of the checkpoint that was read."""
    changes: list[Change]
    """Changes at loading the checkpoint into the model."""
    difference: float
    """Largest absolute difference of logits between the original and the written model, on random images."""
    notes: list[str]
    """Lines for the user about facts that the format cannot hold."""
    said: list[str]
    """Lines for the user about how the checkpoint was read, and about facts from the text beside its weights."""


@functools.cache
def _exports() -> dict[str, Export]:
    """The formats by name, in alphabetical order: those of codebases, and programs."""
    packages = ("deit_fast.convert.formats", "deit_fast.convert.names")
    found = {each.name: each for package in packages for each in discover(package, "EXPORT", Export).values()}
    return dict(sorted(found.items()))


def choose_format(destination: Path, name: str | None) -> Export:
    """The format for a destination, by its suffix or by `name`. Raises RunError for an unknown one."""
    if name is not None:
        if name not in _exports():
            raise RunError(f"--format {name}: expected one of {', '.join(_exports())}{suggest(name, _exports())}")
        return _exports()[name]
    if destination.is_dir() or not destination.suffix:
        return _exports()[_FOLDER]
    if destination.suffix == ".pt":
        raise RunError(f"{destination}: a .pt resumes a run, and weights alone cannot; expected .safetensors")
    endings = {each.ending: each for each in _exports().values()}
    if destination.suffix not in endings:
        raise RunError(f"{destination}: expected a folder, or a name that ends in {', '.join(sorted(endings))}")
    return endings[destination.suffix]


def export_checkpoint(
    source: str | Path,
    destination: Path,
    format: str | None = None,
    overrides: Iterable[str] = (),
    ema: bool = False,
    place: str | None = None,
) -> Exported:
    """Writes the weights of `source`, anything that `open_weights` takes, to `destination`, and reads them back.

    format: name of an `EXPORT` of names/ or formats/; by default the destination's suffix decides. overrides: words
    that change the model first, for example model.image_size=384. place: where timm's folder will be found, for
    its model card, in the form that `model_card` takes; by default the destination. Raises RecipeError or RunError.
    """
    export = choose_format(destination, format)
    check_utf8(destination)
    if (destination / CHECKPOINTS).is_dir():  # its files would hide the run's checkpoints
        raise RunError(f"{destination}: is the folder of a run: expected another place")
    weights = open_weights(source, ema)
    overrides = tuple(overrides)
    recipe = weights.recipe.override(overrides)
    need_head(weights, recipe)
    model, changes = build_initialised(recipe.model, weights)
    model.eval()
    size = recipe.model.image_size
    images = torch.randn(CHECK_BATCH, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        notes = export.write(model, recipe, weights.classes, destination)
    except BadFileError as error:
        raise RunError(f"{source}: {error}") from None
    reload = export.reload(destination) or _load(destination)
    with torch.no_grad():
        difference = (model(images) - reload(images)).abs().max().item()
    if not math.isfinite(difference):
        raise RunError(f"{source}: the logits of random images are not finite: expected useful weights")
    if export.name == _FOLDER and destination.is_dir():
        scores = None if overrides else read_scores(source, ema)
        count = sum(each.numel() for each in model.parameters())
        card = model_card(recipe, weights.classes, count, place or f"local-dir:{destination}", scores)
        (destination / "README.md").write_text(card, encoding="utf-8")
    return Exported(destination, export.name, weights.source, changes, difference, notes, weights.say())


def _load(path: Path) -> nn.Module:
    """The model that the checkpoint at `path` describes."""
    weights = load_weights(path)
    return build_initialised(weights.recipe.model, weights)[0].eval()
