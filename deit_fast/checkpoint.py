"""Checkpoints: written whole or not at all, read without running code, loaded across resolutions and class counts."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.layers import PatchEmbed
from torch import Tensor

from deit_fast.errors import RecipeError, RunError, one_line
from deit_fast.files import atomic_path
from deit_fast.models.build import ImageModel
from deit_fast.recipe import SECTIONS, Recipe, parse_recipe

FORMAT = 1

# Keys that may change between a run and its continuation: none alters what is trained on, though compile rounds, and
# draws dropout, otherwise.
_FREE = ("log_every", "eval_every", "checkpoint_every", "compile", "grad_checkpointing", "nonfinite_limit", "profile")
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


@dataclass(frozen=True)
class Weights:
    """A model's weights and the recipe they were trained with."""

    tensors: dict[str, Tensor]
    recipe: Recipe
    classes: list[str] | None
    """Names of the head's classes, where the file has them."""


def load_weights(path: Path, ema: bool = False) -> Weights:
    """Weights from a .pt or .safetensors file of a run, on the CPU; `ema` takes the moving average (.pt only).

    Raises RunError, one line, for a missing, foreign or damaged file.
    """
    if path.suffix == ".safetensors" and not ema:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path}: expected a readable safetensors file ({error})") from None
        if "recipe" not in metadata:
            raise RunError(f"{path}: expected a recipe in its header, as deit_fast writes it")
        recipe = parse_recipe(json.loads(metadata["recipe"]), source=str(path))
        return Weights(tensors, recipe, json.loads(metadata.get("classes", "null")))
    state = load_checkpoint(path, torch.device("cpu"))
    tensors = state["ema"] if ema else state["model"]
    if tensors is None:
        raise RunError(f"{path}: expected a moving average, but the run had optim.ema_decay=null")
    return Weights(tensors, parse_recipe(state["recipe"], source=str(path)), state.get("classes"))


def resample_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings [1, N x N, D] as [1, H x W, D]: bicubic in fp32, as facebookresearch/deit main.py does it.

    timm's resampling antialiases, which in torch is another bicubic kernel (a = -0.5 instead of -0.75) even where the
    grid grows: 8 x 8 to 12 x 12 of a random embedding (std 0.02) differs by up to 0.007.
    """
    side = round(positions.shape[1] ** 0.5)
    square = positions.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resampled = F.interpolate(square, grid, mode="bicubic", align_corners=False)
    return resampled.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)


def initialise(model: ImageModel, tensors: dict[str, Tensor]) -> list[str]:
    """Loads `tensors` into a model of another resolution or class count; says in words what it changed.

    Position embeddings are resampled, but for the slots of class and distillation token, which stay; fixed ones are the
    model's own. A head of another class count keeps its initialisation.
    Raises RunError for weights of another architecture, and for ResMLP's of another resolution.
    """
    tensors = dict(tensors)
    changes = []
    own = model.state_dict()
    position = tensors.get("pos_embed")
    if position is not None and "pos_embed" in dict(model.named_buffers()):
        tensors["pos_embed"] = own["pos_embed"]
    elif position is not None and "pos_embed" in own and position.shape[1] != own["pos_embed"].shape[1]:
        grid = cast(PatchEmbed, model.patch_embed).grid_size
        slots = own["pos_embed"].shape[1] - grid[0] * grid[1]
        old = math.isqrt(position.shape[1] - slots)
        if old * old == position.shape[1] - slots:
            patches = resample_positions(position[:, slots:], grid)
            tensors["pos_embed"] = torch.cat([position[:, :slots], patches], dim=1)
            changes.append(f"pos_embed: resampled from {old} x {old} to {grid[0]} x {grid[1]} patches")
    for head in ("head", "head_dist"):
        weight, bias = f"{head}.weight", f"{head}.bias"
        if weight in tensors and weight in own and tensors[weight].shape != own[weight].shape:
            changes.append(f"{head}: {len(tensors[weight])} classes became {len(own[weight])}, initialised anew")
            tensors.update({weight: own[weight], bias: own[bias]})
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
