"""`build_model`, the one way to make a model, and `ModelFamily`, the interface of each family."""

from abc import ABC, abstractmethod
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from deit_fast.models.initialise import draw_weights
from deit_fast.models.state_dicts import Sizes, Weights
from deit_fast.models.stochastic_depth import keep_count
from deit_fast.recipe.sections import Model
from deit_fast.runtime.discover import discover
from deit_fast.runtime.errors import RecipeError
from deit_fast.zoo import FAMILIES, Architecture, find_architecture

if TYPE_CHECKING:
    # Python has no type for "a torch module that follows this protocol", and timm's classes have no common base.
    class ImageModel(nn.Module):
        """The model of every family: images [B, 3, S, S] -> logits [B, K], with timm's interface."""

        blocks: nn.Sequential
        """The residual blocks in order. Each returns tokens [B, N, D], or a map [B, h, w, D]."""

        def __call__(self, images: Tensor) -> Any:
            """Logits [B, K]; a pair of them, one per head, while a distilled model trains with a teacher."""

        def forward_features(self, images: Tensor) -> Tensor:
            """The features after the final norm and before the head: tokens [B, N, D]."""

        def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
            """Logits [B, K] from such tokens; with `pre_logits`, the head's input [B, D]."""

        def set_grad_checkpointing(self, enable: bool = True) -> None:
            """Whether the backward pass recomputes each block's activations instead of keeping them."""

else:
    ImageModel = nn.Module


class TimmModel(NamedTuple):
    """The call that makes the same model with timm: `timm.create_model(name, **arguments)`."""

    name: str
    arguments: dict[str, Any]
    """All arguments but num_classes and the activation."""
    pool: str = "token"
    """timm's global_pool."""


class ModelFamily(ABC):
    """The interface of a model family: FAMILY in a module of deit_fast/models/.

    The module of the same name in deit_fast/zoo/families/ lists the family's models. State dicts have timm's names, or
    the names of the family's reference where timm has no such model.
    """

    one_resolution: str | None = None
    """Part of the names of weights that fit one resolution only and cannot be resampled; None if there are none."""

    @abstractmethod
    def build(self, architecture: Architecture, section: Model, drop_subset: bool) -> nn.Module:
        """An `ImageModel` with its norms, LayerScale and fixed positions set; `build_model` draws the other weights.

        drop_subset: the blocks skip the samples that stochastic depth drops (models/stochastic_depth.py).
        """

    @abstractmethod
    def recognises(self, tensors: Weights) -> bool:
        """Whether a state dict belongs to this family. The zoo's families are asked in order; the first match wins.

        A state dict may come from any project, so a family looks for names that no other architecture has.
        """

    @abstractmethod
    def read(self, tensors: Weights, grid: tuple[int, int] | None) -> Sizes:
        """The sizes of a recognised state dict's model. grid: height and width in patches, if the file gives them.

        Raises WeightsError; for damaged files KeyError and IndexError are possible too.
        """

    def prefix_tokens(self, architecture: Architecture, section: Model) -> int:
        """The number of tokens at the beginning that are not patches."""
        return 0

    def timm_model(self, architecture: Architecture, section: Model) -> TimmModel | None:
        """timm's model with this state dict; None where timm has none."""
        return None

    def is_reference(self, names: set[str]) -> bool:
        """Whether these names are the reference's (facebookresearch/deit) and differ from this project's names."""
        return False

    def from_reference(self, tensors: Weights) -> dict[str, Tensor]:
        """Weights with this project's names and shapes, from weights with the reference's, such as a head [K, D].

        The default is for families whose reference has the same names. Raises WeightsError.
        """
        return dict(tensors)

    def to_reference(self, tensors: Weights) -> dict[str, Tensor]:
        """The inverse of `from_reference`: weights by the reference's names, in its shapes, such as a head [K, D]."""
        return dict(tensors)


@cache
def families() -> dict[str, ModelFamily]:
    """The families by name, in the order of the zoo."""
    # Only modules of the zoo's families are imported: block_kernels.py needs Triton, which takes 90 MB and may be
    # missing.
    found = discover("deit_fast.models", "FAMILY", ModelFamily, FAMILIES)  # type: ignore[type-abstract]
    if alone := FAMILIES.keys() - found.keys():
        raise TypeError(f"{', '.join(sorted(alone))}: expected a family in deit_fast.models and deit_fast.zoo.families")
    return {name: found[name] for name in FAMILIES}


def family_of(name: str) -> ModelFamily:
    """The family of the zoo's entry `name`. Raises RecipeError, one line, where there is none."""
    return families()[find_architecture(name).family]


# Below this rate drawing, gathering and scattering cost as much as skipping saves (DINOv2 uses the same limit).
SUBSET_FROM = 0.1


def drops_subset(section: Model) -> bool:
    """Whether blocks skip the samples that stochastic depth drops: model.drop_path_mode, with "auto" resolved."""
    if section.drop_path_mode == "auto":
        return section.drop_path >= SUBSET_FROM
    return section.drop_path_mode == "subset"


def check_drop_path(section: Model, batch: int) -> None:
    """Raises RecipeError if a batch of `batch` images is so small that stochastic depth would drop none of them."""
    drops = section.drop_path and section.train_mode and drops_subset(section)
    if drops and keep_count(batch, section.drop_path) == batch:
        raise RecipeError(
            f"model.drop_path={section.drop_path:g}: expected a larger batch than {batch} for each process and pass, "
            "whose subset drops none; or model.drop_path_mode=bernoulli"
        )


def build_model(section: Model, seed: int | None = None) -> ImageModel:
    """The recipe's model with its initial weights (models/initialise.py), which are the same for the same seed.

    seed: None draws the seed from torch's global generator, so that torch.manual_seed decides. Raises RecipeError for
    an unknown model name.
    """
    architecture = find_architecture(section.name)
    model = family_of(section.name).build(architecture, section, drops_subset(section))
    if seed is None:
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    draw_weights(model, section.init_std, seed)
    return cast(ImageModel, model)
