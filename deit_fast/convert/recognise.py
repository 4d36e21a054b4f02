"""The model section of weights with timm's names: inferred from their shapes, or compared with them."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from deit_fast.convert.formats.lazy_tensor import BadFileError
from deit_fast.models.build import ModelFamily, build_model, families
from deit_fast.models.state_dicts import Sizes, WeightsError
from deit_fast.recipe.sections import Model
from deit_fast.runtime.errors import RecipeError
from deit_fast.zoo import ARCHITECTURES, FAMILIES, find_family

_RANKS = {"pos_embed": 3, "cls_token": 3, "head.weight": 2, "head.bias": 1}


def recognise(tensors: dict[str, Tensor]) -> tuple[str, ModelFamily]:
    """The family that recognises a state dict (tensors of each weight's shape [...] by name), preceded by its name.

    Raises BadFileError where no family does, or where a weight that the family reads has a wrong number of dimensions.
    """
    for name, rank in _RANKS.items():
        if name in tensors and tensors[name].ndim != rank:
            raise BadFileError(f"has {name} {list(tensors[name].shape)}: expected {rank} dimensions")
    for name, family in families().items():
        if family.recognises(tensors):
            return name, family
    some = ", ".join(sorted(tensors)[:3])
    raise BadFileError(f"has {some[:150]!a}: expected the weights of a model of facebookresearch/deit")


def infer_model(
    tensors: dict[str, Tensor], grid: tuple[int, int] | None = None, tanh: bool = False, heads: int | None = None
) -> Model:
    """The model section for a state dict with timm's names, each of its weight's shape, such as head.weight [K, D].

    grid: height and width in patches, where the file says it. tanh: trained with GELU's approximation. heads: of the
    attention, where the file says it. Raises BadFileError where the zoo has no such model, or one with another number
    of heads.
    """
    family_name, family = recognise(tensors)
    with _as_bad_file():
        sizes = family.read(tensors, grid)
    name = _find_name(family_name, sizes)
    entry = ARCHITECTURES[name]
    if heads is not None and heads != entry.num_heads:
        raise BadFileError(f"has {heads} attention heads: expected {entry.num_heads}, as {name} has")
    return Model(
        name=name,
        num_classes=len(tensors["head.weight"]) if "head.weight" in tensors else None,
        layer_scale="auto" if sizes.layer_scale == (entry.layer_scale is not None) else None,
        activation="gelu_tanh" if tanh else "gelu",
        **sizes.fields,
    )


def _find_name(family: str, sizes: Sizes) -> str:
    """The zoo's entry with these sizes. Raises BadFileError where there is none."""
    found = [
        name
        for name, entry in ARCHITECTURES.items()
        if find_family(name) is FAMILIES[family] and all(getattr(entry, key) == sizes.entry[key] for key in sizes.entry)
    ]
    # LayerScale can be left out of any model, but some models have an entry without it.
    found.sort(key=lambda name: (ARCHITECTURES[name].layer_scale is not None) != sizes.layer_scale)
    if found:
        return found[0]
    words = ", ".join(f"{key}={value}" for key, value in sizes.entry.items())
    raise BadFileError(f"is a model of the family {family} with {words}: no such entry in deit_fast.zoo")


def declared_grid(tensors: Mapping[str, Tensor], size: tuple[int, int] | None) -> tuple[int, int] | None:
    """The grid of patches for images of `size` px, if the weights have a position for each patch.

    None if they have another number of positions, whatever the text beside them says: models are often resized
    afterwards.
    """
    patches = tensors.get("patch_embed.proj.weight", tensors.get("stem.proj.weight"))
    if size is None or patches is None or patches.ndim != 4 or 0 in patches.shape:
        return None
    grid = size[0] // patches.shape[2], size[1] // patches.shape[3]
    mixing, positions = tensors.get("blocks.0.linear_tokens.weight"), tensors.get("pos_embed")
    if mixing is not None and mixing.ndim == 2:
        return grid if len(mixing) == grid[0] * grid[1] else None
    slots = [1, 0] if "cls_token" in tensors else [0]
    slots = [2] if "dist_token" in tensors else slots
    fits = positions is not None and positions.ndim == 3 and positions.shape[1] - grid[0] * grid[1] in slots
    return grid if fits else None


def check_inferred(model: Model, tensors: dict[str, Tensor]) -> None:
    """Raises BadFileError where tensors (each with its weight's shape [...]) include some that their model lacks.

    model: from `infer_model`. Missing tensors and tensors of another shape are reported when the weights are loaded.
    """
    own = describe_weights(model.model_copy(update={"num_classes": model.num_classes or 1}))
    if wrong := differences({name: tensors[name] for name in tensors if name not in own}, {}):
        raise BadFileError(
            f"has weights of another architecture than {model.name}, the nearest: {'; '.join(wrong[:3])} "
            f"({len(wrong)} in all)"
        )


def check_declared(model: Model, tensors: dict[str, Tensor]) -> None:
    """Raises BadFileError where tensors do not fit the model section in their file.

    tensors: by timm's names, each with its weight's shape [...]. The section's model takes no memory: a small file
    could describe a model of any size.
    """
    try:
        own = describe_weights(model)
    except RecipeError as error:
        raise BadFileError(str(error)) from None
    except (RuntimeError, OverflowError, TypeError):  # torch's errors for sizes beyond 64 bits
        raise BadFileError(f"has model.image_size={model.image_size}, model.num_classes={model.num_classes}: expected "
                           "those of a model that can be built") from None  # fmt: skip
    if wrong := differences(tensors, own):
        raise BadFileError(
            f"has weights of another architecture than its recipe's model.name={model.name!r} with model.image_size="
            f"{model.image_size}, model.num_classes={model.num_classes}: {wrong[0]} ({len(wrong)} in all)"
        )


def describe_weights(model: Model) -> dict[str, Tensor]:
    """The state dict of a section's model on the meta device: each weight's type and shape [...], without elements.

    Raises RecipeError where the model cannot be built. torch raises RuntimeError, OverflowError or TypeError for sizes
    beyond 64 bits.
    """
    with torch.device("meta"):
        return build_model(model).state_dict()


def differences(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """The differences, in words, between `tensors` and the state dict `own` of a model.

    There is a line for each name that is missing in one of them or has different shapes [...]; sorted by name.
    """
    return sorted(
        f"{name} {list(tensors[name].shape) if name in tensors else 'missing'}, expected "
        f"{list(own[name].shape) if name in own else 'no such weight'}"
        for name in own.keys() | tensors.keys()
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape
    )


@contextlib.contextmanager
def _as_bad_file() -> Iterator[None]:
    try:
        yield
    except WeightsError as error:
        raise BadFileError(str(error)) from None
