"""timm's model folder: model.safetensors and config.json, which `timm.create_model("local-dir:FOLDER")` reads."""

from typing import Any

from deit_fast.models import timm
from deit_fast.models.build import family_of
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import RunError
from deit_fast.zoo import find_architecture


def timm_config(recipe: Recipe, classes: list[str] | None) -> dict[str, Any]:
    """The content of config.json for a recipe's model. Raises RunError for a model that timm lacks."""
    entry, section = find_architecture(recipe.model.name), recipe.model
    theirs = family_of(section.name).timm_model(entry, section)
    if theirs is None:
        raise RunError(f"{section.name}: timm has no such model; expected another format than its folder")
    arguments = dict(theirs.arguments)
    if section.activation == "gelu_tanh":
        arguments["act_layer"] = "gelu_tanh"
    published = timm.get_pretrained_cfg(theirs.name)
    assert published is not None
    pretrained: dict[str, Any] = {
        "tag": "deit_fast",
        "num_classes": section.classes,
        "input_size": [3, section.image_size, section.image_size],
        "fixed_input_size": True,
        "interpolation": recipe.data.eval_interpolation,
        "crop_pct": recipe.data.eval_crop_ratio,
        "crop_mode": "center",
        "mean": list(recipe.data.mean),
        "std": list(recipe.data.std),
        "first_conv": published.first_conv,
        "classifier": published.classifier,
    }
    if classes is not None:
        pretrained["label_names"] = classes
    return {
        "architecture": theirs.name,
        "num_classes": section.classes,
        "num_features": entry.embed_dim,
        "global_pool": theirs.pool,
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }
