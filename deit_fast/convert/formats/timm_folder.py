"""timm's model folder: model.safetensors and the config.json that `timm.create_model("local-dir:FOLDER")` reads."""

from typing import Any

from deit_fast.convert.infer import Shapes
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import RunError
from deit_fast.zoo import find_architecture

# timm's model to start from; the arguments of timm_config make it any of its family.
_BASES = {
    "deit3": "deit3_base_patch16_224",
    "parallel": "vit_base_patch16_18x2_224",
    "deit": "deit_base_patch16_224",
    "distilled": "deit_base_distilled_patch16_224",
    "cait": "cait_s24_224",
}
_RESMLPS = {(384, 12): "resmlp_12_224", (384, 24): "resmlp_24_224", (384, 36): "resmlp_36_224",
            (768, 24): "resmlp_big_24_224"}  # fmt: skip


def timm_config(recipe: Recipe, shapes: Shapes, classes: list[str] | None) -> dict[str, Any]:
    """The content of config.json for a recipe's model of these shapes. Raises RunError for a model timm lacks."""
    entry, section = find_architecture(recipe.model.name), recipe.model
    family = shapes.family
    if family == "deit3" and shapes.parallel > 1:
        family = "parallel"
    elif family == "deit" and shapes.distilled:
        family = "distilled"
    base = _RESMLPS.get((entry.embed_dim, entry.depth)) if family == "resmlp" else _BASES.get(family)
    if base is None or shapes.hmlp:
        raise RunError(f"{section.name}: timm has no such model; expected another format than its folder")
    arguments: dict[str, Any] = {"img_size": section.image_size}
    if family != "resmlp":  # whose sizes timm fixes by name
        arguments |= {"patch_size": entry.patch_size, "embed_dim": entry.embed_dim, "depth": entry.depth,
                      "num_heads": entry.num_heads}  # fmt: skip
    if family in ("deit3", "parallel"):
        arguments["init_values"] = 1e-4 if shapes.layer_scale else None
        arguments["no_embed_class"] = True
    if section.pool == "avg":
        arguments |= {"global_pool": "avg", "class_token": False, "fc_norm": False}
    if section.activation == "gelu_tanh":
        arguments["act_layer"] = "gelu_tanh"
    stem = "stem.proj" if family == "resmlp" else "patch_embed.proj"
    pretrained: dict[str, Any] = {
        "tag": "deit_fast",
        "num_classes": section.classes,
        "input_size": [3, section.image_size, section.image_size],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": recipe.data.eval_crop_ratio,
        "crop_mode": "center",
        "mean": list(recipe.data.mean),
        "std": list(recipe.data.std),
        "first_conv": stem,
        "classifier": ["head", "head_dist"] if shapes.distilled else "head",
    }
    if classes is not None:
        pretrained["label_names"] = classes
    return {
        "architecture": base,
        "num_classes": section.classes,
        "num_features": entry.embed_dim,
        "global_pool": "avg" if family == "resmlp" else section.pool,
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }
