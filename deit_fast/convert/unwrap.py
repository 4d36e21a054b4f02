"""Extracts weights from their wrappers: other contents of a training file, and prefixes of names."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from deit_fast.convert.formats.constructors import OrderedDict
from deit_fast.convert.formats.lazy_tensor import BadFileError, LazyTensor
from deit_fast.convert.names import Codebase

# Parts of names that torch adds: DistributedDataParallel and averages, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_COUNTERS = ("n_averaged", "steps")  # of torch's and mmengine's AveragedModel, whose weights are module.*
_ROTARY = re.compile(r"(.*\.)?(rope|rotary)\w*", re.IGNORECASE)  # names of rotary positions in timm and elsewhere
_PATCHES = "patch_embed.proj.weight"


def select_weights(tree: dict[Any, Any], codebases: Iterable[Codebase], ema: bool) -> Mapping[Any, Any]:
    """The weights in a training file: by the codebases' keys, else its only state dict, else the whole file.

    ema: takes the moving average. Raises BadFileError where there is none, and where there are several state dicts.
    """
    if ema:
        for each in codebases:
            if each.average_key and (each.average_sign or each.average_key) in tree:
                state = tree.get(each.average_key)
                if isinstance(state, dict):
                    return state
        raise BadFileError("expected a moving average, but the file has none")
    signs = [each.average_sign for each in codebases if each.average_sign is not None]
    keys = [each.weights_key for each in codebases if each.weights_key is not None]
    for key in (*signs, *keys):
        if isinstance(tree.get(key), dict):
            return tree[key]
    dicts = {name: each for name, each in tree.items() if _is_state_dict(each)}
    if len(dicts) > 1:
        names = ", ".join(ascii(name)[:50] for name in list(dicts)[:5])
        raise BadFileError(f"has the weights of several models, {names}: expected one, or one called 'model'")
    return next(iter(dicts.values()), tree)


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(
        isinstance(name, str) and isinstance(each, Tensor | LazyTensor) for name, each in value.items()
    )  # fmt: skip


def check_modules(state: Mapping[Any, Any]) -> None:
    """Raises BadFileError where a module's state dict has rotary positions, which have no weights."""
    names = state.modules if isinstance(state, OrderedDict) else ()
    if rotary := next((name for name in names if _ROTARY.fullmatch(name)), None):
        raise BadFileError(f"has the module {rotary[:80]!a}, rotary positions: expected a model without")


def unwrap_names(tensors: dict[str, Tensor], is_known: Callable[[dict[str, Tensor]], bool]) -> dict[str, Tensor]:
    """The tensors by their names in the model, without prefixes of wrappers and of an enclosing module.

    is_known: whether a codebase has these names; a prefix common to all names is then part of the names. Otherwise such
    a prefix, for example Lightning's `model.`, is removed. Raises BadFileError for weights outside the model.
    """
    names = [name for name in tensors if name not in _COUNTERS]
    if all(name.startswith("module.") for name in names):
        tensors = {name: tensors[name] for name in names}
    bare: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inner = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if inner in bare:
            raise BadFileError(
                f"has {inner[:80]!a} twice, in a wrapper and out of it: expected the weights of one model"
            )
        bare[inner] = tensor
    while not is_known(bare) and (prefix := _common_prefix(bare)):
        bare = {name.removeprefix(prefix): tensor for name, tensor in bare.items()}
    prefix = next((name.removesuffix(_PATCHES) for name in bare if name.endswith(f".{_PATCHES}")), "")
    if prefix and not is_known(bare):
        beside = next(name for name in bare if not name.startswith(prefix))
        raise BadFileError(f"has {beside[:80]!a} beside {prefix[:80] + '*'!a}: expected the weights of one model alone")
    return bare


def _common_prefix(names: Iterable[str]) -> str:
    """`first.` where all names begin with it; "" where they do not, or where it is the prefix of the blocks."""
    firsts = {name.partition(".")[0] if "." in name else "" for name in names}
    first = firsts.pop() if len(firsts) == 1 else ""
    return f"{first}." if first and first != "blocks" else ""
