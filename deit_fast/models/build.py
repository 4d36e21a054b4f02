"""`build_model`, the one way to a model, and `ModelFamily`: what each family has to offer for it."""

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
    # Python has no type for a module of torch that also keeps to a protocol, and timm's classes have no common base.
    class ImageModel(nn.Module):
        """What every family builds: images [B, 3, S, S] -> logits [B, K], with timm's interface."""

        blocks: nn.Sequential
        """The residual blocks in order, which give tokens [B, N, D], or a map [B, h, w, D]."""

        def __call__(self, images: Tensor) -> Any:
            """Logits [B, K]; those of both heads in the training of a distilled model that has a teacher."""

        def forward_features(self, images: Tensor) -> Tensor:
            """What is before the head, after the final norm: tokens [B, N, D]."""

        def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
            """Of these tokens logits [B, K], or with `pre_logits` what the head sees [B, D]."""

        def set_grad_checkpointing(self, enable: bool = True) -> None:
            """Whether the backward pass computes each block's activations again instead of keeping them."""

else:
    ImageModel = nn.Module


class TimmModel(NamedTuple):
    """How timm makes the same model: `timm.create_model(name, **arguments)`."""

    name: str
    arguments: dict[str, Any]
    """All but num_classes and the activation."""
    pool: str = "token"
    """Its global_pool."""


class ModelFamily(ABC):
    """A model family: the object FAMILY of a module of deit_fast/models/.

    deit_fast/zoo/families/ has the module of the same name. State dicts have timm's names, or the family's reference's
    where timm has no such model.
    """

    one_resolution: str | None = None
    """Part of the names of weights that exist for one resolution only and cannot be resampled; None: there are none."""

    @abstractmethod
    def build(self, architecture: Architecture, section: Model, drop_subset: bool) -> nn.Module:
        """An `ImageModel` whose norms, LayerScale and fixed positions are set; `build_model` draws the rest.

        With `drop_subset` its blocks skip what stochastic depth drops (models/stochastic_depth.py).
        """

    @abstractmethod
    def recognises(self, tensors: Weights) -> bool:
        """Whether a state dict is of this family. Families are asked in the order of the zoo, and the first takes it.

        The names may be anybody's, so a family asks for names that no other has.
        """

    @abstractmethod
    def read(self, tensors: Weights, grid: tuple[int, int] | None) -> Sizes:
        """The sizes of a state dict that it recognises; `grid` is height and width in patches, where the file says it.

        Raises WeightsError. Of damaged files KeyError and IndexError may come too.
        """

    def prefix_tokens(self, architecture: Architecture, section: Model) -> int:
        """How many of the first tokens in the blocks are no patches."""
        return 0

    def timm_model(self, architecture: Architecture, section: Model) -> TimmModel | None:
        """timm's model with this state dict; None where timm has none."""
        return None

    def is_reference(self, names: set[str]) -> bool:
        """Whether these are facebookresearch/deit's names of this family, where they are not this project's too."""
        return False

    def from_reference(self, tensors: Weights) -> dict[str, Tensor]:
        """Weights by this project's names and shapes, of weights with the reference's, such as a head [K, D].

        The default is for a family whose reference has the same names. Raises WeightsError.
        """
        return dict(tensors)

    def to_reference(self, tensors: Weights) -> dict[str, Tensor]:
        """The inverse of `from_reference`: weights by the reference's names, in its shapes, such as a head [K, D]."""
        return dict(tensors)


@cache
def families() -> dict[str, ModelFamily]:
    """The families by name, in the order of the zoo."""
    # Not the modules beside them: block_kernels.py needs Triton, which takes 90 MB and is not everywhere.
    found = discover("deit_fast.models", "FAMILY", ModelFamily, FAMILIES)  # type: ignore[type-abstract]
    if alone := FAMILIES.keys() - found.keys():
        raise TypeError(f"{', '.join(sorted(alone))}: expected a family in deit_fast.models and deit_fast.zoo.families")
    return {name: found[name] for name in FAMILIES}


def family_of(name: str) -> ModelFamily:
    """The family of the zoo's entry `name`. Raises RecipeError, one line, where there is none."""
    return families()[find_architecture(name).family]


# Below this rate drawing, gathering and scattering cost what skipping saves (DINOv2 draws the line there too).
SUBSET_FROM = 0.1


def drops_subset(section: Model) -> bool:
    """Whether stochastic depth skips the branches that it drops: model.drop_path_mode, with "auto" resolved."""
    if section.drop_path_mode == "auto":
        return section.drop_path >= SUBSET_FROM
    return section.drop_path_mode == "subset"


def check_drop_path(section: Model, batch: int) -> None:
    """Raises RecipeError where a batch of `batch` images is so small that stochastic depth would drop none of it."""
    drops = section.drop_path and section.train_mode and drops_subset(section)
    if drops and keep_count(batch, section.drop_path) == batch:
        raise RecipeError(
            f"model.drop_path={section.drop_path:g}: expected a larger batch than {batch} for each process and pass, "
            "whose subset drops none; or model.drop_path_mode=bernoulli"
        )


def build_model(section: Model, seed: int | None = None) -> ImageModel:
    """The model of a recipe with its initial weights (models/initialise.py), the same for the same seed.

    seed: None draws one from torch's global generator, so that torch.manual_seed decides, as of any model of torch.
    Raises RecipeError for a name that is no model's.
    """
    architecture = find_architecture(section.name)
    model = family_of(section.name).build(architecture, section, drops_subset(section))
    if seed is None:
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    draw_weights(model, section.init_std, seed)
    return cast(ImageModel, model)
