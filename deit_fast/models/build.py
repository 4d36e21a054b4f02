"""The one door to a model: from a recipe's section, or from a name as the Python API has it."""

from typing import Any

from timm.models.vision_transformer import VisionTransformer

from deit_fast.errors import RecipeError
from deit_fast.models.stochastic_depth import keep_count
from deit_fast.models.vit import build_vit
from deit_fast.sections import Model
from deit_fast.zoo import find_architecture

# Below this rate drawing, gathering and scattering cost what skipping saves (DINOv2 draws the line there too).
SUBSET_FROM = 0.1


def drops_subset(section: Model) -> bool:
    """Whether stochastic depth skips the branches that it drops: model.drop_path_mode, with "auto" resolved."""
    if section.drop_path_mode == "auto":
        return section.drop_path >= SUBSET_FROM
    return section.drop_path_mode == "subset"


def check_drop_path(section: Model, batch: int) -> None:
    """Raises RecipeError where the subset of a batch this small is all of it: that would be no stochastic depth."""
    if section.drop_path and drops_subset(section) and keep_count(batch, section.drop_path) == batch:
        raise RecipeError(
            f"model.drop_path={section.drop_path:g}: expected a larger batch than {batch} for each process and pass, "
            "whose subset drops none; or model.drop_path_mode=bernoulli"
        )


def build_model(section: Model) -> VisionTransformer:
    """The model of a recipe, initialised from torch's global generator."""
    return build_vit(find_architecture(section.name), section, drops_subset(section))


def create_model(name: str, img_size: int = 224, num_classes: int = 1000, **fields: Any) -> VisionTransformer:
    """A model by name, for images [B, 3, img_size, img_size]; `fields` are those of a recipe's model section.

    Example: `create_model("deit3_base_patch16", img_size=192, drop_path=0.2)`. Raises RecipeError for an unknown name.
    """
    return build_model(Model(name=name, image_size=img_size, num_classes=num_classes, **fields))
