"""facebookresearch/deit's names, family by family (`from_reference` and `to_reference` of deit_fast/models/).

DeiT, its distilled form and CaiT have timm's own, and PatchConvNet is built here with the reference's.
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
    """The family of which the reference has these names, where they are not timm's as well."""
    return next((name for name, family in families().items() if family.is_reference(names)), None)


def from_facebook(tensors: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """timm's names and shapes, such as a head [K, D], of a family of `facebook_family`; unknown names stay as they are.

    Raises BadFileError for tensors that are no such model's.
    """
    try:
        return families()[family].from_reference(tensors)
    except WeightsError as error:
        raise BadFileError(str(error)) from None


def to_facebook(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's names and shapes of a model's weights with timm's, each of its weight's shape [...].

    The inverse of `from_facebook`. Raises BadFileError for tensors that no family recognises.
    """
    return recognise(tensors)[1].to_reference(tensors)


def _to_timm(tensors: dict[str, Tensor]) -> TimmWeights:
    family = facebook_family(set(tensors))
    return TimmWeights(tensors if family is None else from_facebook(tensors, family))


def _write(model: nn.Module, recipe: Recipe, classes: list[str] | None, path: Path) -> list[str]:
    """Writes {"model": ...}, as the reference's own files are."""
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
