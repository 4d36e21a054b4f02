"""Any checkpoint as weights with timm's names: what a file is, its content says, never its name.

A file is recognised twice: its first bytes by a container of formats/, its tensors' names by a codebase of names/.
"""

import contextlib
import functools
import mmap
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from torch import Tensor

from deit_fast.convert.formats import Container
from deit_fast.convert.formats.lazy_tensor import BadFileError, map_file, read_tensors
from deit_fast.convert.formats.metadata import Notes, check_names, check_plain, find_weights, read_notes
from deit_fast.convert.names import Codebase, TimmWeights
from deit_fast.convert.own_format import refuse_format
from deit_fast.convert.recognise import check_declared, infer_model
from deit_fast.recipe.schema import Recipe, parse_recipe
from deit_fast.recipe.sections import Data, LambOptim, Run
from deit_fast.runtime.discover import discover
from deit_fast.runtime.errors import RecipeError, RunError, one_line
from deit_fast.zoo import find_family

T = TypeVar("T", Container, Codebase)

_START = 9  # bytes of a file that its refusal shows
_WRAPPERS = ("module.", "_orig_mod.")  # before every name: DistributedDataParallel's and torch.compile's
# What parsers of damaged bytes raise, here and in zipfile, msgpack and pickletools.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, struct.error,
           zipfile.BadZipFile, NotImplementedError, RecursionError, MemoryError, RuntimeError)  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """A model's weights and the recipe they were trained with; of a foreign file, one made up around its model."""

    tensors: dict[str, Tensor]
    """By timm's names, on the CPU, each of its weight's shape [...]."""
    recipe: Recipe
    classes: list[str] | None
    """Names of the head's classes, where the file has them."""
    source: str = "deit_fast"
    """Whose format the file is."""


def load_weights(path: Path, ema: bool = False) -> Weights:
    """Weights of a checkpoint in any known format, on the CPU; `ema` takes the moving average.

    The formats are deit_fast's own (.pt and .safetensors) and those of the codebases in names/, in the containers of
    formats/. No file's code is run. A foreign file gets a recipe whose model section (and published crop ratio) is
    inferred from the tensors; its other values are defaults, so that it can be evaluated, exported and trained from.
    Raises RunError, one line, for a missing, unknown, damaged or malicious file.
    """
    with _in_one_line(path):
        file = find_weights(path)
        mapped = map_file(file)
        tree = _read_container(file, mapped)
        if isinstance(tree.get("recipe"), dict) and isinstance(tree.get("model"), dict):
            return _read_own(tree, ema, len(mapped), path)
        named, source = _rename(read_tensors(_select(tree, ema), len(mapped)))
        notes = read_notes(path) if path.is_dir() else Notes()
        if path.is_dir():
            named = replace(named, tanh=notes.tanh, mean=notes.mean, std=notes.std)
        model = infer_model(named.tensors, named.grid, named.tanh, named.heads)
        crop = {"eval_crop_ratio": find_family(model.name).eval_crop_ratio}
        colours = {key: tuple(value) for key, value in (("mean", named.mean), ("std", named.std)) if value is not None}
        recipe = Recipe(
            name=f"{model.name}_imported",
            description=f"Made up around weights of {source}: the model section is theirs, the rest are defaults.",
            model=model,
            data=Data.model_validate(crop | colours),
            optim=LambOptim(lr=1e-5),
            run=Run(global_batch=512),
        )
    return Weights(named.tensors, recipe, notes.classes, source)


@contextlib.contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file, as a RunError."""
    try:
        yield
    except RunError:
        raise
    except (BadFileError, ValidationError) as error:
        raise RunError(f"{path}: {one_line(error)[:300]}") from None
    except FileNotFoundError:
        raise RunError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from None
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {one_line(error)[:150]}"
        raise RunError(f"{path}: expected a whole checkpoint, but it is damaged or truncated ({reason})") from None


@functools.cache
def _containers() -> dict[str, Container]:
    return discover("deit_fast.convert.formats", "CONTAINER", Container)


@functools.cache
def _codebases() -> dict[str, Codebase]:
    return discover("deit_fast.convert.names", "CODEBASE", Codebase)


def _choose(candidates: dict[str, T], content: Any) -> T | None:
    """The one that recognises `content`, of several the one of the highest priority. Raises BadFileError for a tie."""
    found = {name: each for name, each in candidates.items() if each.recognises(content)}
    highest = max((each.priority for each in found.values()), default=0)
    names = [name for name, each in found.items() if each.priority == highest]
    if len(names) > 1:
        raise BadFileError(f"is recognised by {' and '.join(names)}: expected one of them to have the higher priority")
    return found[names[0]] if names else None


def _read_container(path: Path, mapped: mmap.mmap) -> dict[Any, Any]:
    container = _choose(_containers(), mapped)
    if container is None:
        *names, last = [each.name for each in _containers().values()]
        raise BadFileError(f"starts with {mapped[:_START]!r}: expected a file of {', '.join(names)} or {last}")
    tree = container.read(path, mapped)
    if not isinstance(tree, dict):
        raise BadFileError(f"holds a {type(tree).__name__}: expected a dictionary of weights")
    return tree


def _read_own(tree: dict[Any, Any], ema: bool, size: int, path: Path) -> Weights:
    """A checkpoint of deit_fast's, of a file of `size` bytes: its recipe says what its weights are."""
    if wrong := refuse_format(tree.get("format")):
        raise BadFileError(wrong)
    if ema and "ema" not in tree:
        raise BadFileError("expected a moving average, but a safetensors file holds one model: give the .pt")
    state = tree["ema"] if ema else tree["model"]
    if state is None:
        raise BadFileError("expected a moving average, but the run had optim.ema_decay=null")
    words, classes = check_plain(tree["recipe"]), check_names(check_plain(tree.get("classes")))
    tensors = read_tensors(state, size)
    try:
        recipe = parse_recipe(words, source=str(path))
    except RecipeError as error:  # which names the file
        raise RunError(str(error)) from None
    check_declared(recipe.model, tensors)
    return Weights(tensors, recipe, classes)


def _select(tree: dict[Any, Any], ema: bool) -> Mapping[Any, Any]:
    """The weights in a training file, by the keys of the codebases, or else the whole of it."""
    if not ema:
        keys = [each.weights_key for each in _codebases().values() if each.weights_key is not None]
        return next((tree[key] for key in keys if isinstance(tree.get(key), dict)), tree)
    for each in _codebases().values():
        if each.average_key and (each.average_sign or each.average_key) in tree:
            state = tree.get(each.average_key)
            if isinstance(state, dict):
                return state
    raise BadFileError("expected a moving average, but the file has none")


def _rename(tensors: dict[str, Tensor]) -> tuple[TimmWeights, str]:
    """The tensors with timm's names, and the codebase that had them, in words."""
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    codebase = _choose(_codebases(), tensors)
    assert codebase is not None, "timm's takes what no other recognises"
    return codebase.to_timm(tensors), codebase.source
