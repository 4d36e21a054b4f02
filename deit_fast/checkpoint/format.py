"""The files of a checkpoint: written atomically, verified by checksums, read without running code."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from deit_fast.convert.own_format import ADVICE, FORMAT, refuse_format
from deit_fast.recipe.schema import SECTIONS, Recipe
from deit_fast.runtime.errors import RecipeError, RunError, StorageError, one_line
from deit_fast.runtime.files import atomic_path, hash_file, lacking_space

SUFFIXES = (".safetensors", ".pt")
SEAL = ".sha256"

Digests = dict[str, str]

# Recipe keys that may differ between a run and its continuation, because none changes what is trained on. Some change
# rounding: compile and accumulation change that of sums, and the random draws of dropout; hw_decoder_load and
# image_backend change that of pixels.
_FREE = ("accumulation", "device", "start", "log_every", "trackers", "eval_every", "checkpoint_every",
         "keep_checkpoints", "compile", "compute_copy", "parallel", "grad_checkpointing", "nonfinite_limit",
         "hang_timeout", "cache_gib", "hw_decoder_load", "image_backend", "profile")  # fmt: skip
FREE_KEYS = {("run", key) for key in _FREE} | {("data", "may_change"), ("data", "cache_limit")}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain data, with "model" and "recipe") to PATH.pt, its weights to PATH.safetensors.

    The safetensors file uses timm's keys and has recipe, classes and step in its header. PATH.sha256, the seal, is
    written last and makes the two files a checkpoint: files without a seal are not resumed from. Raises RunError where
    a file cannot be written.
    """
    seal_checkpoint(path, write_checkpoint(path, state))


def write_checkpoint(path: Path, state: dict[str, Any]) -> Digests:
    """Writes the two files of `save_checkpoint` without their seal; returns their SHA-256 (hexadecimal) by suffix.

    A full disk leaves both old files as they were. A crash may leave one new and one old file, which match no seal.
    Raises StorageError where a file cannot be written, naming the bytes that a full disk lacks.
    """
    weights = {name: value.detach().contiguous().cpu() for name, value in state["model"].items()}
    header = {key: json.dumps(state.get(key)) for key in ("recipe", "classes", "step")}
    try:
        with atomic_path(path.with_suffix(".safetensors")) as small, atomic_path(path) as large:
            save_file(weights, small, metadata={"format": "pt", **header})
            torch.save({"format": FORMAT, **state}, large)
            digests = {".safetensors": hash_file(small), ".pt": hash_file(large)}
    except (OSError, SafetensorError, RuntimeError) as error:  # torch's writer raises RuntimeError for a full disk
        plain = OSError(error.errno, error.strerror) if isinstance(error, OSError) and error.errno else error
        reason = lacking_space(path.parent, _size_of(weights) + _size_of(state)) or one_line(plain)[:200]
        raise StorageError(f"{path}: cannot be written ({reason})") from error
    return digests


def _size_of(content: Any) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return sum(map(_size_of, values))


def seal_checkpoint(path: Path, digests: Digests) -> None:
    """Writes PATH.sha256 in the format of sha256sum, so that `sha256sum --check` can verify the files too.

    digests: as `write_checkpoint` returns them. Raises RunError where the file cannot be written.
    """
    try:
        with atomic_path(path.with_suffix(SEAL)) as temporary:
            temporary.write_text(_format_seal(path, digests), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path.with_suffix(SEAL)}: cannot be written ({error.strerror})") from error


def link_checkpoint(source: Path, destination: Path, digests: Digests) -> None:
    """Makes `destination` the same checkpoint as `source`, without copying data where there are hard links.

    A crash during the call leaves files that do not match the seal beside them. Raises RunError where they cannot be
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
        raise StorageError(f"{destination}: cannot be written ({error.strerror})") from error
    seal_checkpoint(destination, digests)


def restore_link(source: Path, destination: Path) -> None:
    """`link_checkpoint` of a sealed checkpoint, unless `destination` is the same checkpoint already.

    Raises RunError.
    """
    digests, there = read_digests(source), destination.with_suffix(SEAL)
    if not there.exists() or there.read_bytes() != _format_seal(destination, digests).encode():
        link_checkpoint(source, destination, digests)


def read_digests(path: Path) -> Digests:
    """The SHA-256 of each file of the checkpoint at PATH.pt, read from its seal."""
    lines = path.with_suffix(SEAL).read_text().splitlines()
    return dict(zip(SUFFIXES, (line.split()[0] for line in lines), strict=True))


def sealed_digest(path: Path) -> str | None:
    """The SHA-256 of the checkpoint's file PATH.pt as its seal says it, None without a readable seal."""
    try:
        return read_digests(path)[".pt"]
    except (OSError, ValueError, IndexError):
        return None


def verify_checkpoint(path: Path) -> str:
    """Verifies both files of the checkpoint at PATH.pt against PATH.sha256 and returns the SHA-256 of PATH.pt.

    Raises RunError, one line, where a file is damaged or missing, or where the files belong to different checkpoints.
    """
    try:
        sealed = path.with_suffix(SEAL).read_bytes()
    except FileNotFoundError:
        raise RunError(lacks_seal(path)) from None
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


def lacks_seal(path: Path) -> str:
    """The message for a checkpoint at PATH.pt without PATH.sha256: what is wrong, and what to do."""
    if path.is_dir():
        return f"{path}: is a folder: expected a checkpoint's file, such as checkpoints/last.pt in a run's folder"
    name = path.with_suffix(SEAL).name
    return (
        f"{path}: expected its checksums beside it, in {name}; put the file there that belongs to it, or, where an "
        f"early version wrote none, {ADVICE}"
    )


def _format_seal(path: Path, digests: Digests) -> str:
    return "".join(f"{digest}  {path.with_suffix(suffix).name}\n" for suffix, digest in digests.items())


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, with its tensors on the device.

    Raises RunError, one line, for any other file.
    """
    try:
        # The file is mapped, not read, so that a caller who wants the weights alone does not read the optimizer's
        # state.
        state = torch.load(path, map_location=device, weights_only=True, mmap=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        reason = one_line(error)[:200]
        raise RunError(f"{path}: expected a checkpoint of tensors and plain data ({reason})") from None
    if wrong := refuse_format(state.get("format") if isinstance(state, dict) else None):
        raise RunError(f"{path}: {wrong}")
    return state


def check_same_recipe(recipe: Recipe, saved: Recipe, path: Path) -> None:
    """Raises RecipeError where the checkpoint at `path` was trained with another recipe."""
    mine, theirs = recipe.model_dump(), saved.model_dump()
    for name in SECTIONS:
        for key, value in mine[name].items():
            # A key that only one recipe has depends on an earlier key, whose difference is reported before.
            if value != theirs[name].get(key) and (name, key) not in FREE_KEYS:
                raise RecipeError(
                    f"{name}.{key}={value!r}: expected {theirs[name].get(key)!r}, with which {path} was started; "
                    f"{_way_on(name, path)}"
                )


def _way_on(section: str, path: Path) -> str:
    """What to do after a change of the recipe, in words: a longer schedule continues as a new training."""
    if section == "schedule":
        return f"to train its weights further, choose another --out and --init {path}; or train anew in another --out"
    return "choose another --out, or start over with --resume never, which moves that run aside"
