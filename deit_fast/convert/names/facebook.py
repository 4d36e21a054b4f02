"""facebookresearch/deit's names, family by family (`from_reference` and `to_reference` of deit_fast/models/).

DeiT, its distilled form and CaiT have timm's names, and PatchConvNet is built here with the reference's names.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from deit_fast.convert.formats import Export
from deit_fast.convert.formats.lazy_tensor import BadFileError
from deit_fast.convert.names import Codebase, TimmWeights
from deit_fast.convert.recognise import recognise
from deit_fast.models.build import families
from deit_fast.models.state_dicts import WeightsError
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.files import atomic_path


def facebook_family(names: set[str]) -> str | None:
    """The family for which these are the reference's names, if timm's names differ; else None."""
    return next((name for name, family in families().items() if family.is_reference(names)), None)


def from_facebook(tensors: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """Weights of a family from `facebook_family` with timm's names and shapes, such as a head [K, D].

    Unknown names are kept. Raises BadFileError for tensors that fit no model of the family.
    """
    try:
        return families()[family].from_reference(tensors)
    except WeightsError as error:
        raise BadFileError(str(error)) from None


def to_facebook(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights with the reference's names and shapes, from timm's, each with its weight's shape [...].

    The inverse of `from_facebook`. Raises BadFileError for tensors that no family recognises.
    """
    return recognise(tensors)[1].to_reference(tensors)


def _to_timm(tensors: dict[str, Tensor]) -> TimmWeights:
    family = facebook_family(set(tensors))
    return TimmWeights(tensors if family is None else from_facebook(tensors, family))


def _write(model: nn.Module, recipe: Recipe, classes: list[str] | None, path: Path) -> list[str]:
    """Writes {"model": ...}, the form of the reference's own files."""
    with atomic_path(path) as temporary:
        torch.save({"model": to_facebook(model.state_dict())}, temporary)
    if recipe.model.activation == "gelu_tanh":
        return ["the format cannot say that the model was trained with GELU's tanh approximation"]
    return []


CODEBASE = Codebase(
    "facebookresearch/deit",
    recognises=lambda tensors: facebook_family(set(tensors)) is not None,
    to_timm=_to_timm,
    weights_key="model",
    average_key="model_ema",
)
EXPORT = Export("facebook", ".pth", _write)
