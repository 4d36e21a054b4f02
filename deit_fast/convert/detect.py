"""Any checkpoint as weights with timm's names: what a file is, its content says, never its name."""

import contextlib
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deit_fast.convert.formats.flax import read_flax
from deit_fast.convert.formats.lazy_tensor import BadFileError, Stored
from deit_fast.convert.formats.metadata import check_names, check_plain, find_weights, parse_json, read_notes
from deit_fast.convert.formats.torch_files import map_file, read_pickles, read_zip
from deit_fast.convert.infer import check_declared, infer_model
from deit_fast.convert.names.deit3_jax import from_deit3_jax, is_deit3_jax
from deit_fast.convert.names.facebook import facebook_family, from_facebook
from deit_fast.convert.names.huggingface import from_huggingface, is_huggingface
from deit_fast.convert.names.mmpretrain import from_mmpretrain, is_mmpretrain
from deit_fast.convert.names.passl import from_passl, passl_arrays
from deit_fast.recipe.schema import Recipe, parse_recipe
from deit_fast.recipe.sections import Data, LambOptim, Run
from deit_fast.runtime.errors import RecipeError, RunError, one_line
from deit_fast.zoo import find_family

_HEADER_LIMIT = 3_000_000  # bytes of safetensors' header: 20,000 tensors, or the names of 21,843 classes
_SHARED = 2  # how often a file may use its bytes, for tied weights
# What parsers of damaged bytes raise, here and in zipfile, msgpack and pickletools.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, struct.error,
           zipfile.BadZipFile, NotImplementedError, RecursionError, MemoryError, RuntimeError)  # fmt: skip


@dataclass(frozen=True)
class Named:
    """Tensors with timm's names, and what their file says beside them."""

    tensors: dict[str, Tensor]
    source: str
    """The format in words, for example "mmpretrain"."""
    recipe: dict[str, Any] | None = None
    classes: list[str] | None = None
    tanh: bool = False
    heads: int | None = None
    grid: tuple[int, int] | None = None
    mean: Any = None
    std: Any = None


@dataclass(frozen=True)
class Weights:
    """A model's weights and the recipe they were trained with; of a foreign file, one made up around its model."""

    tensors: dict[str, Tensor]
    recipe: Recipe
    classes: list[str] | None
    """Names of the head's classes, where the file has them."""
    source: str = "deit_fast"
    """Whose format the file is."""


def load_weights(path: Path, ema: bool = False) -> Weights:
    """Weights of a checkpoint in any known format, on the CPU; `ema` takes the moving average.

    Ours (.pt and .safetensors) and those of facebookresearch/deit, deit3-jax, mmpretrain, PASSL, timm and transformers,
    told apart by their content. No file's code is run. A foreign file gets a recipe whose model section (and published
    crop ratio) is inferred from the tensors; its other values are defaults, so that it can be evaluated, exported and
    trained from. Raises RunError, one line, for a missing, unknown, damaged or malicious file.
    """
    named = read_named(path, ema)
    if named.recipe is not None:
        try:
            recipe = parse_recipe(named.recipe, source=str(path))
        except RecipeError as error:
            raise RunError(str(error)) from None
        with _in_one_line(path):
            check_declared(recipe.model, named.tensors)
        return Weights(named.tensors, recipe, named.classes)
    with _in_one_line(path):
        model = infer_model(named.tensors, named.grid, named.tanh, named.heads)
        crop = {"eval_crop_ratio": find_family(model.name).eval_crop_ratio}
        colours = {key: tuple(value) for key, value in (("mean", named.mean), ("std", named.std)) if value is not None}
        recipe = Recipe(
            name=f"{model.name}_imported",
            description=f"Made up around weights of {named.source}: the model section is theirs, the rest are "
            "defaults.",
            model=model,
            data=Data.model_validate(crop | colours),
            optim=LambOptim(lr=1e-5),
            run=Run(global_batch=512),
        )
    return Weights(named.tensors, recipe, named.classes, named.source)


def read_named(path: Path, ema: bool = False) -> Named:
    """The tensors of a checkpoint with timm's names, whether or not the zoo has the model. Raises RunError."""
    with _in_one_line(path):
        named = _read(find_weights(path), ema)
        if path.is_dir() and named.recipe is None:
            notes = read_notes(path)
            named = replace(named, tanh=notes.tanh, mean=notes.mean, std=notes.std, classes=notes.classes)
        return named


@contextlib.contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file, as a RunError."""
    try:
        yield
    except (BadFileError, ValidationError) as error:
        raise RunError(f"{path}: {one_line(error)[:300]}") from None
    except FileNotFoundError:
        raise RunError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from None
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {one_line(error)[:150]}"
        raise RunError(f"{path}: expected a whole checkpoint, but it is damaged or truncated ({reason})") from None


def _read(path: Path, ema: bool) -> Named:
    mapped = map_file(path)
    start = mapped[:9]
    if start.startswith(b"PK\x03\x04"):
        return _from_tree(read_zip(mapped), ema, len(mapped))
    if len(start) == 9 and start[8:] == b"{":
        return _from_safetensors(path, int.from_bytes(start[:8], "little"), len(mapped), ema)
    if start[0] == 0x80 and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _from_tree(read_pickles(mapped), ema, len(mapped))
    if 0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF):  # msgpack maps
        return _from_flax(read_flax(mapped), ema)
    raise BadFileError(f"starts with {start!r}: expected a file of torch, safetensors, flax (msgpack) or paddle")


def _from_safetensors(path: Path, header: int, size: int, ema: bool) -> Named:
    if header > min(size - 8, _HEADER_LIMIT):
        raise BadFileError(f"claims a header of {header} bytes in {size}; it may be truncated")
    if ema:
        raise BadFileError("expected a moving average, but a safetensors file holds one model: give the .pt")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise BadFileError(f"expected a readable safetensors file ({one_line(error)[:150]})") from None
    if "recipe" in metadata:
        recipe, classes = parse_json(metadata["recipe"]), parse_json(metadata.get("classes", "null"))
        if not isinstance(recipe, dict):
            raise BadFileError(f"has a {type(recipe).__name__} as its recipe: expected an object")
        return Named(tensors, "deit_fast", recipe, check_names(classes))
    return _from_names(tensors, "timm")


def _from_flax(tree: Any, ema: bool) -> Named:
    if ema:
        raise BadFileError("expected a moving average, but deit3-jax saves none")
    if not is_deit3_jax(tree):
        raise BadFileError("is a flax file, but not of deit3-jax (model.embed.wte)")
    tensors, heads, grid = from_deit3_jax(tree)
    return Named(tensors, "deit3-jax", tanh=True, heads=heads, grid=grid)


def _from_tree(tree: Any, ema: bool, size: int) -> Named:
    """A pickled tree, of a file of `size` bytes: ours, a training checkpoint, or the weights alone."""
    if not isinstance(tree, dict):
        raise BadFileError(f"holds a {type(tree).__name__}: expected a dictionary of weights")
    if isinstance(tree.get("recipe"), dict) and isinstance(tree.get("model"), dict):
        if tree.get("format") != 1:
            raise BadFileError("is of another format: expected a deit_fast checkpoint of format 1")
        state = tree["ema"] if ema else tree["model"]
        if state is None:
            raise BadFileError("expected a moving average, but the run had optim.ema_decay=null")
        recipe, classes = check_plain(tree["recipe"]), check_names(check_plain(tree.get("classes")))
        return Named(_tensors(state, size), "deit_fast", recipe, classes)
    arrays = passl_arrays(tree)
    qkv = (arrays or {}).get("blocks.0.attn.qkv.weight")
    if arrays and qkv is not None and not ema and qkv.shape[-1] == 3 * qkv.shape[0]:
        return replace(_from_names(from_passl(_tensors(arrays, size)), "PASSL"), source="PASSL")
    state = tree
    if ema:
        state = tree.get("model_ema", tree.get("state_dict_ema"))
        if state is None and "ema_state_dict" in tree:
            state = tree["state_dict"]  # mmengine's EMAHook swaps the two when it saves
        if not isinstance(state, dict):
            raise BadFileError("expected a moving average, but the file has none")
    else:
        for key in ("model", "state_dict"):
            if isinstance(tree.get(key), dict):
                state = tree[key]
                break
    return _from_names(_tensors(state, size), "facebookresearch/deit or timm")


def _from_names(tensors: dict[str, Tensor], plain: str) -> Named:
    """Tensors of one of the torch codebases, told apart by their names; `plain` are timm's own."""
    for prefix in ("module.", "_orig_mod."):  # DistributedDataParallel's and torch.compile's
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    names = set(tensors)
    if is_mmpretrain(names):
        return Named(from_mmpretrain(tensors), "mmpretrain")
    if is_huggingface(names):
        return Named(from_huggingface(tensors), "transformers")
    family = facebook_family(names)
    if family is not None:
        return Named(from_facebook(tensors, family), "facebookresearch/deit")
    return Named(tensors, plain)


def _tensors(state: Mapping[Any, Any], size: int) -> dict[str, Tensor]:
    """The tensors of a file of `size` bytes. Raises BadFileError where they would be more than the file has."""
    tensors, taken = {}, 0
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Stored):
            raise BadFileError(f"has {str(name)[:50]!a} of type {type(value).__name__}: expected tensors by name")
        tensor = tensors[name] = value.tensor()
        taken += tensor.nbytes
        if taken > _SHARED * size:
            raise BadFileError(f"has more than {taken} bytes of tensors in a file of {size}")
    if not tensors:
        raise BadFileError("has no weights")
    return tensors
