"""`deit-fast convert`: a checkpoint of any known format in another one, read back and compared with the original."""

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deit_fast.convert.detect import load_weights
from deit_fast.convert.fit import Change, build_initialised
from deit_fast.convert.formats.flax import write_flax
from deit_fast.convert.formats.lazy_tensor import BadFileError
from deit_fast.convert.formats.programs import export_onnx, export_program, run_onnx, run_program
from deit_fast.convert.formats.timm_folder import timm_config
from deit_fast.convert.names.deit3_jax import to_deit3_jax
from deit_fast.convert.names.facebook import to_facebook
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import RunError, suggest
from deit_fast.runtime.files import atomic_path, write_json
from deit_fast.zoo import find_architecture

CHECK_BATCH = 3  # not the batch of the export's example, which was 2

SUFFIXES = {
    ".safetensors": "timm",
    ".pth": "facebook",
    ".msgpack": "deit3-jax",
    ".onnx": "onnx",
    ".pt2": "program",
}
"""Formats by the ending of the destination; a destination without one is a timm folder."""


@dataclass(frozen=True)
class Exported:
    """A written checkpoint."""

    path: Path
    format: str
    source: str
    """Format of the checkpoint it was made from."""
    changes: list[Change]
    """What loading it into the model changed."""
    difference: float
    """Largest absolute difference of logits between the original and what was written, on random images."""
    notes: list[str]


def choose_format(destination: Path, name: str | None) -> str:
    """The format of a destination, by its ending or by `name`. Raises RunError for one that is not known."""
    formats = list(SUFFIXES.values())
    if name is not None:
        if name not in formats:
            raise RunError(f"--format {name}: expected one of {', '.join(formats)}{suggest(name, formats)}")
        return name
    if destination.is_dir() or not destination.suffix:
        return "timm"
    if destination.suffix == ".pt":
        raise RunError(f"{destination}: a .pt resumes a run, and weights alone cannot; expected .safetensors")
    if destination.suffix not in SUFFIXES:
        raise RunError(f"{destination}: expected a folder, or a name that ends in {', '.join(SUFFIXES)}")
    return SUFFIXES[destination.suffix]


def export_checkpoint(
    source: Path, destination: Path, format: str | None = None, overrides: Iterable[str] = (), ema: bool = False
) -> Exported:
    """Writes the weights of `source`, any format that load_weights reads, to `destination` and reads them back.

    timm: safetensors and config.json, for `timm.create_model("local-dir:FOLDER", pretrained=True)`. facebook: {"model":
    ...} with facebookresearch/deit's names. deit3-jax: flax msgpack. onnx, program: programs with a free batch size.
    Overrides change the model first, for example model.image_size=384. Raises RecipeError or RunError.
    """
    format = choose_format(destination, format)
    weights = load_weights(source, ema)
    recipe = weights.recipe.override(overrides)
    model, changes = build_initialised(recipe.model, weights)
    model.eval()
    size = recipe.model.image_size
    images = torch.randn(CHECK_BATCH, 3, size, size, generator=torch.Generator().manual_seed(0))
    notes: list[str] = []
    try:
        reload = _WRITERS[format](model, recipe, weights.classes, destination, notes)
    except BadFileError as error:
        raise RunError(f"{source}: {error}") from None
    with torch.no_grad():
        difference = (model(images) - reload(images)).abs().max().item()
    return Exported(destination, format, weights.source, changes, difference, notes)


def _write_timm(
    model: nn.Module, recipe: Recipe, classes: list[str] | None, path: Path, notes: list[str]
) -> Callable[[Tensor], Tensor]:
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    config = timm_config(recipe, classes)
    is_file = path.suffix == ".safetensors"
    weights = path if is_file else path / "model.safetensors"
    header = {"recipe": json.dumps(recipe.model_dump(mode="json")), "classes": json.dumps(classes)}
    with atomic_path(weights) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **header})
    write_json(weights.parent / "config.json", config)
    if is_file and weights.name != "model.safetensors":
        notes.append(
            f"timm reads a folder's model.safetensors first; {weights.name} should be alone in it, or so named"
        )
        return _load(weights)
    return timm.create_model(f"local-dir:{weights.parent}", pretrained=True).eval()


def _write_facebook(
    model: nn.Module, recipe: Recipe, classes: list[str] | None, path: Path, notes: list[str]
) -> Callable[[Tensor], Tensor]:
    with atomic_path(path) as temporary:
        torch.save({"model": to_facebook(model.state_dict())}, temporary)
    if recipe.model.activation == "gelu_tanh":
        notes.append("the format cannot say that the model was trained with GELU's tanh approximation")
    return _load(path)


def _write_deit3_jax(
    model: nn.Module, recipe: Recipe, classes: list[str] | None, path: Path, notes: list[str]
) -> Callable[[Tensor], Tensor]:
    entry = find_architecture(recipe.model.name)
    grid = (recipe.model.image_size // entry.patch_size,) * 2
    content = write_flax(to_deit3_jax(model.state_dict(), entry.num_heads, grid))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    if recipe.model.activation == "gelu":
        notes.append("deit3-jax computes GELU by its tanh approximation, this model exactly")
    return _load(path)


def _write_onnx(
    model: nn.Module, recipe: Recipe, classes: list[str] | None, path: Path, notes: list[str]
) -> Callable[[Tensor], Tensor]:
    export_onnx(model, _example(recipe), path)
    notes.append(_input_note(recipe))
    return functools.partial(run_onnx, path)


def _write_program(
    model: nn.Module, recipe: Recipe, classes: list[str] | None, path: Path, notes: list[str]
) -> Callable[[Tensor], Tensor]:
    export_program(model, _example(recipe), path)
    notes.append(_input_note(recipe))
    return functools.partial(run_program, path)


_WRITERS = {
    "timm": _write_timm,
    "facebook": _write_facebook,
    "deit3-jax": _write_deit3_jax,
    "onnx": _write_onnx,
    "program": _write_program,
}


def _load(path: Path) -> nn.Module:
    """The model that `path` itself describes."""
    weights = load_weights(path)
    return build_initialised(weights.recipe.model, weights)[0].eval()


def _example(recipe: Recipe) -> Tensor:
    return torch.zeros(CHECK_BATCH - 1, 3, recipe.model.image_size, recipe.model.image_size)


def _input_note(recipe: Recipe) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (recipe.data.mean, recipe.data.std))
    size = recipe.model.image_size
    return f"input: images [batch, 3, {size}, {size}] in [0, 1], less ({mean}), divided by ({std})"
