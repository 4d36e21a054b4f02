"""Checkpoints: written whole or not at all, read without running code, loaded across resolutions and class counts."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from deit_fast.convert.fit import Change, fit_distillation, fit_head, fit_positions, fix_positions
from deit_fast.convert.read import Weights, read_weights
from deit_fast.errors import RecipeError, RunError, one_line
from deit_fast.files import atomic_path
from deit_fast.recipe import SECTIONS, Recipe

FORMAT = 1

# Keys that may change between a run and its continuation: none alters what is trained on, though compile rounds, and
# draws dropout, otherwise.
_FREE = ("log_every", "eval_every", "checkpoint_every", "compile", "grad_checkpointing", "nonfinite_limit", "cache_gib",
         "profile")  # fmt: skip
FREE_KEYS = {("run", key) for key in _FREE}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain data, with "model" and "recipe") to PATH.pt, its weights to PATH.safetensors.

    The safetensors file has timm's keys and carries recipe, classes and step in its header. Runs resume from the .pt,
    which is written last; a crash between the two leaves the weights of a later step beside it, until the next save.
    Raises RunError where a file cannot be written; what was there before is then still there.
    """
    weights = {name: value.detach().contiguous().cpu() for name, value in state["model"].items()}
    header = {key: json.dumps(state.get(key)) for key in ("recipe", "classes", "step")}
    try:
        with atomic_path(path.with_suffix(".safetensors")) as temporary:
            save_file(weights, temporary, metadata={"format": "pt", **header})
        with atomic_path(path) as temporary:
            torch.save({"format": FORMAT, **state}, temporary)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch's writer raises the last for a full disk
        raise RunError(f"{path}: cannot be written ({one_line(error)[:200]})") from error


def link_checkpoint(source: Path, destination: Path) -> None:
    """Makes `destination` the same checkpoint as `source`, without a second copy where the file system has links."""
    for suffix in (".safetensors", ".pt"):
        with atomic_path(destination.with_suffix(suffix)) as temporary:
            temporary.unlink()
            try:
                os.link(source.with_suffix(suffix), temporary)
            except OSError:
                temporary.write_bytes(source.with_suffix(suffix).read_bytes())


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote. Raises RunError, one line, for anything else."""
    try:
        # Mapped, not read: who wants the weights alone does not pay for the optimizer's state.
        state = torch.load(path, map_location=device, weights_only=True, mmap=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        reason = one_line(error)[:200]
        raise RunError(f"{path}: expected a checkpoint of tensors and plain data ({reason})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise RunError(f"{path}: format {found!r}: expected a deit_fast checkpoint of format {FORMAT}")
    return state


def load_weights(path: Path, ema: bool = False) -> Weights:
    """Weights of a checkpoint in any known format, on the CPU; `ema` takes the moving average.

    Ours (.pt and .safetensors) and those of facebookresearch/deit, deit3-jax, mmpretrain, PASSL, timm and transformers,
    told apart by their content. No file's code is run. Raises RunError, one line, for a missing, unknown, damaged or
    malicious file.
    """
    return read_weights(path, ema)


def initialise(model: nn.Module, tensors: dict[str, Tensor], grid: tuple[int, int] | None = None) -> list[Change]:
    """Loads `tensors`, with timm's names, into a model of another resolution, token layout or class count.

    Returns a row for all that differed: positions resampled (from a square, or from `grid`), a class slot moved, a
    distillation head dropped or initialised, a head of ImageNet-21k cut down to 1k or one of other classes initialised.
    Every other weight has to be there, and of the model's shape. Raises RunError for weights of another architecture.
    """
    tensors, own = dict(tensors), model.state_dict()
    changes = fit_distillation(tensors, own)
    if "pos_embed" in dict(model.named_buffers()):
        changes += fix_positions(tensors, own)
    elif "pos_embed" in own:
        patches: Any = model.patch_embed
        changes += fit_positions(tensors, own, patches.grid_size, grid)
    for head in ("head", "head_dist"):
        changes += fit_head(head, tensors, own)
    wrong = sorted(
        f"{name} {list(tensors[name].shape) if name in tensors else 'missing'}, expected "
        f"{list(own[name].shape) if name in own else 'no such weight'}"
        for name in own.keys() | tensors.keys()
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape
    )
    if wrong and all("linear_tokens" in each for each in wrong):
        raise RunError(f"weights of another resolution: ResMLP's token mixing cannot be resampled ({wrong[0]})")
    if wrong:
        raise RunError(f"weights of another architecture: {'; '.join(wrong[:3])} ({len(wrong)} in all)")
    model.load_state_dict(tensors)
    return changes


def check_same_recipe(recipe: Recipe, saved: Recipe, path: Path) -> None:
    """Raises RecipeError where the checkpoint at `path` was learned by another recipe."""
    mine, theirs = recipe.model_dump(), saved.model_dump()
    for name in SECTIONS:
        for key, value in mine[name].items():
            if value != theirs[name][key] and (name, key) not in FREE_KEYS:
                raise RecipeError(
                    f"{name}.{key}={value!r}: expected {theirs[name][key]!r}, with which {path} was started; "
                    "choose another --out, or --resume never"
                )
