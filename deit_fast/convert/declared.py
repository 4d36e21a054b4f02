"""Compares the model that a file names with the inferred one: shapes do not show everything, e.g. rotary positions.

timm builds both models, the named one and its own form of the inferred one, on the meta device, and they are compared
module by module. Two models with the same weights can differ in parts without weights: activations, epsilons, heads,
pooling.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from deit_fast.convert.config import Notes
from deit_fast.convert.formats.lazy_tensor import BadFileError
from deit_fast.models import timm
from deit_fast.models.build import TimmModel, family_of
from deit_fast.recipe.sections import Model
from deit_fast.runtime.errors import one_line
from deit_fast.zoo import find_architecture

# Attributes that do not affect logits in evaluation at the weights' own resolution: settings of training and computing,
# and sizes, which the weights show. A class slot is a constant that is added to the token (`fit_positions`).
_FREE = {
    "training", "p", "drop_prob", "scale_by_keep", "inplace", "fused_attn", "grad_checkpointing", "img_size",
    "grid_size", "num_patches", "num_classes", "dynamic_img_size", "dynamic_img_pad", "strict_img_size",
    "no_embed_class", "init_values", "head_dim", "distilled_training", "out_features", "weight_init_mode", "fix_init",
    "head_init_scale", "flatten", "output_fmt",
}  # fmt: skip
_UNUSED_IN_EVALUATION = ("Identity", "Dropout", "DropPath", "PatchDropout")
# Sizes in model_args for which timm builds as many modules: they must not exceed the number that the file has weights
# for.
_HEADS = ("head", "head_dist")  # may be missing
_PLACES = ("device", "dtype")  # arguments for the weights, none of which are made here
_COUNTS = ("depth", "num_blocks", "depth_token_only", "num_parallel")


def training_options(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The options of the script that wrote a training file with the dictionary `tree`; empty if it has none."""
    options = tree.get("args")
    return options if isinstance(options, dict) else {}


def named_model(notes: Notes, tree: Mapping[Any, Any]) -> tuple[str | None, dict[str, Any], str]:
    """timm's name of the model, its arguments, and their source: a config.json, or a training file of timm's scripts.

    The name is None if there is none. A training file may also come from scripts with names of their own.
    """
    if notes.architecture is not None:
        return notes.architecture, notes.arguments, "config.json's architecture"
    options = training_options(tree)
    for key, name in (("arch", tree.get("arch")), ("args.model", options.get("model"))):
        if isinstance(name, str) and timm.is_model(name):
            given = options.get("model_kwargs")
            arguments = dict(given) if isinstance(given, dict) else {}
            if options.get("gp") is not None:
                arguments["global_pool"] = options["gp"]
            return name, arguments, key
    return None, {}, ""


def check_named_model(name: str, arguments: Mapping[str, Any], model: Model, whence: str) -> None:
    """Raises BadFileError where timm's model `name`, made with `arguments`, computes something else than `model`.

    model: the section that was inferred from the weights. whence: the source of the name, in words, for the message.
    """
    entry = find_architecture(model.name)
    own = family_of(model.name).timm_model(entry, model)
    found = f"{whence} {name!a}"
    if not timm.is_model(name.partition(".")[0]):
        raise BadFileError(f"{found}, which timm {timm.__version__} does not know: expected {_words(own, model)}")
    if own is None:
        raise BadFileError(f"{found}: expected no model of timm, which has none like {model.name}")
    for key in _COUNTS:
        if isinstance(count := arguments.get(key), int) and count > entry.depth:
            raise BadFileError(f"{found} with {key}={count}: expected {entry.depth}, by the weights")
    try:
        theirs = _build(name.partition(".")[0], {key: arguments[key] for key in arguments if key not in _PLACES})
    except Exception as error:  # timm may raise anything for these arguments
        reason = f"{type(error).__name__}: {one_line(error)[:100]}"
        raise BadFileError(f"{found} with arguments that timm does not take ({reason})") from None
    tanh = {"act_layer": "gelu_tanh"} if model.activation == "gelu_tanh" else {}
    ours = _build(own.name, own.arguments | tanh)
    if difference := next(_differences(theirs, ours), None):
        raise BadFileError(f"{found}, which computes something else than {model.name}: {difference}")


def _words(own: TimmModel | None, model: Model) -> str:
    return model.name if own is None else f"one of timm's that computes as {model.name}"


def _build(name: str, arguments: dict[str, Any]) -> nn.Module:
    """timm's model on the meta device: no weights are made, and none are read, whatever the arguments say."""
    with torch.device("meta"):
        return timm.models.model_entrypoint(name)(pretrained=False, **arguments)


def _differences(theirs: nn.Module, ours: nn.Module) -> Iterator[str]:
    """The differences, in words, because of which two timm models compute different results from the same weights."""
    left, right = dict(theirs.named_modules()), dict(ours.named_modules())
    for name in dict.fromkeys([*left, *right]):
        one, other = left.get(name), right.get(name)
        if name in _HEADS or (_is_idle(one) and _is_idle(other)):
            continue
        place = name or "the model"
        if one is None or other is None or type(one) is not type(other):
            yield f"{place} is {_kind(one)}, expected {_kind(other)}"
            continue
        mine, expected = _values(one), _values(other)
        for key in sorted(mine.keys() | expected.keys()):
            if mine.get(key) != expected.get(key):
                yield f"{place} has {key}={mine.get(key)!r}, expected {expected.get(key)!r}"


def _is_idle(module: nn.Module | None) -> bool:
    return module is None or type(module).__name__ in _UNUSED_IN_EVALUATION


def _kind(module: nn.Module | None) -> str:
    return "not there" if module is None else type(module).__name__


def _values(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module that may affect its forward pass."""
    return {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_") and key not in _FREE and isinstance(value, bool | int | float | str | None)
    }
