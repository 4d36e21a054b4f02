"""The one door to a model: from a recipe's section."""

from collections.abc import Callable

from timm.models.cait import Cait
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer

from deit_fast.models.cait import build_cait
from deit_fast.models.patchconvnet import PatchConvNet, build_patchconvnet
from deit_fast.models.resmlp import build_resmlp
from deit_fast.models.stochastic_depth import keep_count
from deit_fast.models.vit import build_vit
from deit_fast.recipe.sections import Model
from deit_fast.runtime.errors import RecipeError
from deit_fast.zoo import Architecture, Family, find_architecture

ImageModel = VisionTransformer | Cait | MlpMixer | PatchConvNet

BUILDERS: dict[Family, Callable[[Architecture, Model, bool], ImageModel]] = {
    "deit3": build_vit,
    "deit": build_vit,
    "cait": build_cait,
    "resmlp": build_resmlp,
    "patchconvnet": build_patchconvnet,
}

# Below this rate drawing, gathering and scattering cost what skipping saves (DINOv2 draws the line there too).
SUBSET_FROM = 0.1


def drops_subset(section: Model) -> bool:
    """Whether stochastic depth skips the branches that it drops: model.drop_path_mode, with "auto" resolved."""
    if section.drop_path_mode == "auto":
        return section.drop_path >= SUBSET_FROM
    return section.drop_path_mode == "subset"


def check_drop_path(section: Model, batch: int) -> None:
    """Raises RecipeError where the subset of a batch this small is all of it: that would be no stochastic depth."""
    drops = section.drop_path and section.train_mode and drops_subset(section)
    if drops and keep_count(batch, section.drop_path) == batch:
        raise RecipeError(
            f"model.drop_path={section.drop_path:g}: expected a larger batch than {batch} for each process and pass, "
            "whose subset drops none; or model.drop_path_mode=bernoulli"
        )


def build_model(section: Model) -> ImageModel:
    """The model of a recipe, initialised from torch's global generator."""
    architecture = find_architecture(section.name)
    return BUILDERS[architecture.family](architecture, section, drops_subset(section))
