"""facebookresearch/deit's names, family by family (`from_reference` and `to_reference` of deit_fast/models/).

DeiT, its distilled form and CaiT have timm's own, and PatchConvNet is built here with the reference's.
"""

from torch import Tensor

from deit_fast.convert.formats.lazy_tensor import BadFileError
from deit_fast.convert.infer import recognise
from deit_fast.models.build import families
from deit_fast.models.state_dicts import WeightsError


def facebook_family(names: set[str]) -> str | None:
    """The family of which the reference has these names, where they are not timm's as well."""
    return next((name for name, family in families().items() if family.is_reference(names)), None)


def from_facebook(tensors: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """timm's names and shapes of a family of `facebook_family`; unknown names stay as they are. Raises BadFileError."""
    try:
        return families()[family].from_reference(tensors)
    except WeightsError as error:
        raise BadFileError(str(error)) from None


def to_facebook(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's names of a model with timm's: the inverse of `from_facebook`. Raises BadFileError."""
    return recognise(tensors)[1].to_reference(tensors)
