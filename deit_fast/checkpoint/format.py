"""The files of a checkpoint: written whole or not at all, verified by checksums, read without running code."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from deit_fast.recipe.schema import SECTIONS, Recipe
from deit_fast.runtime.errors import RecipeError, RunError, one_line
from deit_fast.runtime.files import atomic_path, hash_file

FORMAT = 1
SUFFIXES = (".safetensors", ".pt")
SEAL = ".sha256"

Digests = dict[str, str]

# Keys that may change between a run and its continuation: none alters what is trained on, though compile rounds, and
# draws dropout, otherwise, and hw_decoder_load and roi_decode round pixels otherwise.
_FREE = ("start", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "compile", "cuda_graph",
         "compute_copy", "parallel", "grad_checkpointing", "nonfinite_limit", "hang_timeout", "cache_gib",
         "hw_decoder_load", "roi_decode", "profile")  # fmt: skip
FREE_KEYS = {("run", key) for key in _FREE}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain data, with "model" and "recipe") to PATH.pt, its weights to PATH.safetensors.

    The safetensors file has timm's keys and carries recipe, classes and step in its header. PATH.sha256, written last,
    makes the two a checkpoint: without it they are not resumed from. Raises RunError where a file cannot be written.
    """
    seal_checkpoint(path, write_checkpoint(path, state))


def write_checkpoint(path: Path, state: dict[str, Any]) -> Digests:
    """The two files of `save_checkpoint` without their seal; returns the SHA-256 of each, hexadecimal, by its suffix.

    A full disk leaves both as they were; a crash may leave a new one beside an old one, which no seal fits. Raises
    RunError where a file cannot be written.
    """
    weights = {name: value.detach().contiguous().cpu() for name, value in state["model"].items()}
    header = {key: json.dumps(state.get(key)) for key in ("recipe", "classes", "step")}
    try:
        with atomic_path(path.with_suffix(".safetensors")) as small, atomic_path(path) as large:
            save_file(weights, small, metadata={"format": "pt", **header})
            torch.save({"format": FORMAT, **state}, large)
            digests = {".safetensors": hash_file(small), ".pt": hash_file(large)}
    except (OSError, SafetensorError, RuntimeError) as error:  # torch's writer raises the last for a full disk
        raise RunError(f"{path}: cannot be written ({one_line(error)[:200]})") from error
    return digests


def seal_checkpoint(path: Path, digests: Digests) -> None:
    """Writes PATH.sha256, in the format of sha256sum, which can check it too.

    digests: as `write_checkpoint` returns them. Raises RunError where the file cannot be written.
    """
    try:
        with atomic_path(path.with_suffix(SEAL)) as temporary:
            temporary.write_text(_format_seal(path, digests), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path.with_suffix(SEAL)}: cannot be written ({error.strerror})") from error


def link_checkpoint(source: Path, destination: Path, digests: Digests) -> None:
    """Makes `destination` the same checkpoint as `source`, without a second copy where the file system has links.

    A crash in between leaves files that the seal beside them does not fit. Raises RunError where they cannot be
    written.
    """
    try:
        for suffix in SUFFIXES:
            with atomic_path(destination.with_suffix(suffix)) as temporary:
                temporary.unlink()
                try:
                    os.link(source.with_suffix(suffix), temporary)
                except OSError:
                    shutil.copyfile(source.with_suffix(suffix), temporary)
    except OSError as error:
        raise RunError(f"{destination}: cannot be written ({error.strerror})") from error
    seal_checkpoint(destination, digests)


def restore_link(source: Path, destination: Path) -> None:
    """`link_checkpoint` of a sealed checkpoint, unless `destination` is that one. Raises RunError."""
    sealed, there = source.with_suffix(SEAL), destination.with_suffix(SEAL)
    digests = dict(zip(SUFFIXES, (line.split()[0] for line in sealed.read_text().splitlines()), strict=True))
    if not there.exists() or there.read_bytes() != _format_seal(destination, digests).encode():
        link_checkpoint(source, destination, digests)


def verify_checkpoint(path: Path) -> str:
    """Reads both files of the checkpoint at PATH.pt against PATH.sha256 and returns the SHA-256 of PATH.pt.

    Raises RunError, one line, where one is damaged, missing, or of another checkpoint than the other.
    """
    try:
        sealed = path.with_suffix(SEAL).read_bytes()
    except FileNotFoundError:
        raise RunError(f"{path}: expected its checksums beside it, in {path.with_suffix(SEAL).name}") from None
    except OSError as error:
        raise RunError(f"{path.with_suffix(SEAL)}: cannot be read ({error.strerror})") from None
    digests = {}
    for suffix in SUFFIXES:
        file = path.with_suffix(suffix)
        try:
            digests[suffix] = hash_file(file)
        except OSError as error:
            raise RunError(f"{file}: cannot be read ({error.strerror})") from None
        if _format_seal(file, {suffix: digests[suffix]}).encode() not in sealed:
            raise RunError(
                f"{file}: damaged, or of another step than {path.with_suffix(SEAL).name}: its SHA-256 differs"
            )
    if sealed != _format_seal(path, digests).encode():
        raise RunError(f"{path.with_suffix(SEAL)}: damaged: expected one line for each of {', '.join(SUFFIXES)}")
    return digests[".pt"]


def _format_seal(path: Path, digests: Digests) -> str:
    return "".join(f"{digest}  {path.with_suffix(suffix).name}\n" for suffix, digest in digests.items())


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote: plain data and tensors of their weights' shapes [...], on the device.

    Raises RunError, one line, for anything else.
    """
    try:
        # Mapped, not read: who wants the weights alone does not pay for the optimizer's state.
        state = torch.load(path, map_location=device, weights_only=True, mmap=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        reason = one_line(error)[:200]
        raise RunError(f"{path}: expected a checkpoint of tensors and plain data ({reason})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else state
        found = found if isinstance(found, int | None) else type(found).__name__
        raise RunError(f"{path}: format {found}: expected a deit_fast checkpoint of format {FORMAT}")
    return state


def check_same_recipe(recipe: Recipe, saved: Recipe, path: Path) -> None:
    """Raises RecipeError where the checkpoint at `path` was learned by another recipe."""
    mine, theirs = recipe.model_dump(), saved.model_dump()
    for name in SECTIONS:
        for key, value in mine[name].items():
            # A key that the other lacks comes after the one that it depends on, which differs then.
            if value != theirs[name].get(key) and (name, key) not in FREE_KEYS:
                raise RecipeError(
                    f"{name}.{key}={value!r}: expected {theirs[name].get(key)!r}, with which {path} was started; "
                    f"{_way_on(name, path)}"
                )


def _way_on(section: str, path: Path) -> str:
    """What to do where a recipe was changed, in words; with another schedule a run would be trained further."""
    if section == "schedule":
        return f"to train its weights further, choose another --out and --init {path}; or train anew in another --out"
    return "choose another --out, or --resume never"
