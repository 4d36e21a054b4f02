"""Loads any checkpoint as weights with timm's names. The content of a file decides its format, never its name.

A file is recognised in two steps: its first bytes by a container of formats/, its tensors' names by a codebase of
names/.
"""

import contextlib
import functools
import mmap
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from torch import Tensor

from deit_fast.convert.config import Notes, describe, read_notes, read_options
from deit_fast.convert.declared import check_named_model, named_model, training_options
from deit_fast.convert.formats import Container
from deit_fast.convert.formats.constructors import SAVE_STATE_DICT, UnknownNameError
from deit_fast.convert.formats.lazy_tensor import BadFileError, map_file, read_tensors
from deit_fast.convert.formats.metadata import check_names, check_plain
from deit_fast.convert.locate import find_weights
from deit_fast.convert.names import Codebase
from deit_fast.convert.own_format import refuse_format
from deit_fast.convert.recognise import check_declared, check_inferred, declared_grid, infer_model
from deit_fast.convert.unwrap import check_modules, select_weights, unwrap_names
from deit_fast.recipe.schema import Recipe, parse_recipe
from deit_fast.recipe.sections import Data, LambOptim, Run
from deit_fast.runtime.discover import discover
from deit_fast.runtime.errors import RecipeError, RunError, one_line
from deit_fast.zoo import find_family

T = TypeVar("T", Container, Codebase)

_START = 9  # bytes of a file that the message of a refusal shows
_PICKLES = 1 << 26  # bytes at a file's start that are searched again for its pickle
# Errors that parsers raise for damaged bytes, here and in zipfile, msgpack and pickletools.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, struct.error,
           zipfile.BadZipFile, NotImplementedError, RecursionError, MemoryError, RuntimeError)  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """A model's weights and the recipe of their training; a foreign file gets a recipe made for its model."""

    tensors: dict[str, Tensor]
    """By timm's names, on the CPU, each with its weight's shape [...]."""
    recipe: Recipe
    classes: list[str] | None
    """Names of the head's classes, if the file has them."""
    source: str = "deit_fast"
    """The file's format."""
    file: Path | None = None
    """The weights' place, for messages."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The identities of its images in a .pt file of deit_fast, by split, for Identity.from_plain."""
    said: tuple[str, ...] = ()
    """Lines for the user about the facts from the text beside the weights: those that are used and those that are
    not."""

    def say(self) -> list[str]:
        """`said`, each line preceded by the file's name."""
        return [f"{self.file}: {line}" for line in self.said]


def load_weights(path: Path, ema: bool = False) -> Weights:
    """Weights of a checkpoint in any known format, on the CPU. ema: takes the moving average.

    The formats are deit_fast's own (.pt and .safetensors) and those of the codebases in names/, in the containers of
    formats/. No code in a file is run. A foreign file gets a recipe: its model section (and published crop ratio) is
    inferred from the tensors, and other values are defaults. The weights can therefore be evaluated, exported and
    trained from. Raises RunError, one line, for a missing, unknown, damaged or malicious file.
    """
    with _in_one_line(path):
        file = find_weights(path)
        mapped = map_file(file)
        tree = _read_container(file, mapped)
        if isinstance(tree.get("recipe"), dict) and isinstance(tree.get("model"), dict):
            own = _read_own(tree, ema, len(mapped), path)
            return replace(_take_notes(own, read_notes(path) or Notes()), file=path)
        codebases = _codebases().values()
        state = select_weights(tree, codebases, ema)
        check_modules(state)
        tensors = read_tensors(state, len(mapped))
        notes = read_notes(path) or read_options(training_options(tree))
        return replace(_read_foreign(unwrap_names(tensors, _is_known), tree, notes), file=path)


def _take_notes(weights: Weights, notes: Notes) -> Weights:
    """deit_fast's own exported weights, with the values in the config.json beside them, which may have been edited."""
    data = weights.recipe.data
    changed = {key: value for key, value in notes.data.items() if getattr(data, key) != value}
    classes = notes.classes if notes.classes is not None else weights.classes
    if not changed and classes == weights.classes:
        return weights
    recipe = weights.recipe.derive(data=changed)
    kept = replace(notes, data=changed, classes=None if classes == weights.classes else classes)
    return replace(weights, recipe=recipe, classes=classes, said=tuple(describe(kept, recipe.data)))


def _read_foreign(tensors: dict[str, Tensor], tree: dict[Any, Any], notes: Notes) -> Weights:
    """Weights of another codebase, from a file with the dictionary `tree`; their shapes identify the model."""
    codebase = _choose(_codebases(), tensors)
    assert codebase is not None, "timm's takes what no other recognises"
    named = codebase.to_timm(tensors)
    architecture, arguments, whence = named_model(notes, tree)
    try:
        grid = named.grid or declared_grid(named.tensors, notes.size)
        model = infer_model(named.tensors, grid, named.tanh or notes.tanh, named.heads or notes.heads)
        if model.position == "sincos" and not named.fixed_positions:
            raise BadFileError("has no pos_embed: expected position embeddings, which deit3-jax alone does without")
        check_inferred(model, named.tensors)
        if whole := next((name for name, each in named.tensors.items() if not each.is_floating_point()), None):
            dtype = named.tensors[whole].dtype
            raise BadFileError(f"has {whole[:80]!a} of {dtype}, quantised: expected floating-point weights")
    except BadFileError as error:
        raise BadFileError(f"{error}{f'; its {whence} is {architecture!a}' if architecture else ''}") from None
    if architecture is not None:
        check_named_model(architecture, arguments, model, f"has {whence}")
    colours = {key: tuple(value) for key, value in (("mean", named.mean), ("std", named.std)) if value is not None}
    crop = {"eval_crop_ratio": find_family(model.name).eval_crop_ratio}
    found = crop | colours | notes.data
    try:
        data = Data.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise BadFileError(f"has {notes.whence}'s data.{key}={ascii(found[key])[:80]}: {first['msg']}") from None
    if notes.classes is not None and len(notes.classes) != model.num_classes:
        lost = f"{len(notes.classes)} names of classes: expected {model.num_classes or 'none'}, by the weights"
        notes = replace(notes, classes=None, lost=[*notes.lost, lost])
    recipe = Recipe(
        name=f"{model.name}_imported",
        description=f"Made up around weights of {codebase.source}: the model section is theirs, the rest are defaults.",
        model=model,
        data=data,
        optim=LambOptim(lr=1e-5),
        run=Run(global_batch=512),
    )
    classes = "no head" if model.num_classes is None else f"{model.num_classes} classes"
    read = f"read as {model.name} at {model.image_size} px, {classes}, of {codebase.source}"
    said = (read, *describe(notes, data))
    return Weights(named.tensors, recipe, notes.classes, codebase.source, said=said)


@contextlib.contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Raises a RunError for any error in reading a file."""
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
    """The one that recognises `content`, or the one of highest priority. Raises BadFileError for equal priorities."""
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
    try:
        tree = container.read(path, mapped)
    except UnknownNameError as error:
        if mapped.find(b"_parameters", 0, _PICKLES) < 0 or mapped.find(b"_modules", 0, _PICKLES) < 0:
            raise
        raise BadFileError(f"holds a whole module ({error}): {SAVE_STATE_DICT}") from None
    if not isinstance(tree, dict):
        raise BadFileError(f"holds a {type(tree).__name__}: expected a dictionary of weights")
    return tree


def _read_own(tree: dict[Any, Any], ema: bool, size: int, path: Path) -> Weights:
    """A checkpoint of deit_fast, from a file of `size` bytes: its recipe describes the weights."""
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
    except RecipeError as error:  # its message names the file
        raise RunError(str(error)) from None
    check_declared(recipe.model, tensors)
    return Weights(tensors, recipe, classes, data=check_plain(tree.get("data")) or {})


def _is_known(tensors: dict[str, Tensor]) -> bool:
    """Whether a codebase other than timm's, which accepts any names, has these names."""
    return any(each.recognises(tensors) for each in _codebases().values() if each.priority >= 0)
