"""The model table: one entry per architecture, and the other names that stand for it."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from deit_fast.runtime.errors import RecipeError, suggest

Family = Literal["deit3", "deit", "cait", "resmlp", "patchconvnet"]


@dataclass(frozen=True)
class Architecture:
    """Sizes of a model of facebookresearch/deit; deit_fast/models/ has a module for each family."""

    embed_dim: int
    depth: int
    """Blocks; CaiT's two class-attention blocks and PatchConvNet's aggregation layer come on top."""
    num_heads: int
    patch_size: int
    family: Family = "deit3"
    """deit3: position embedding without a class slot. deit: with one, and no LayerScale."""
    layer_scale: float | None = 1e-4
    """Initial value, where a recipe does not say otherwise."""
    parallel: int = 1
    """Attention branches, and then MLP branches, that are summed in a block (arXiv:2203.09795, section 3)."""
    distilled: bool = False
    """Whether there is a distillation token, with a head of its own."""
    class_tokens: bool = False
    """Whether each class has a token of its own (PatchConvNet)."""


ARCHITECTURES: dict[str, Architecture] = {
    # DeiT III: facebookresearch/deit models_v2.py, arXiv:2204.07118.
    "deit3_tiny_patch16": Architecture(192, 12, 3, 16),
    "deit3_small_patch16": Architecture(384, 12, 6, 16),
    "deit3_medium_patch16": Architecture(512, 12, 8, 16),
    "deit3_base_patch16": Architecture(768, 12, 12, 16),
    "deit3_large_patch16": Architecture(1024, 24, 16, 16),
    "deit3_huge_patch14": Architecture(1280, 32, 16, 14),
    "deit3_huge_52_patch14": Architecture(1280, 52, 16, 14),
    "deit3_huge_26x2_patch14": Architecture(1280, 26, 16, 14, parallel=2),
    "deit3_giant_40_patch14": Architecture(1408, 40, 16, 14),
    "deit3_giant_40x2_patch14": Architecture(1408, 40, 16, 14, parallel=2),
    "deit3_giant_48_patch14": Architecture(1664, 48, 16, 14),
    "deit3_giant_48x2_patch14": Architecture(1664, 48, 16, 14, parallel=2),
    # Three things everyone should know about ViTs, arXiv:2203.09795: deep or parallel, with LayerScale or without.
    "deit3_small_36_patch16": Architecture(384, 36, 6, 16),
    "deit3_small_36_patch16_unscaled": Architecture(384, 36, 6, 16, layer_scale=None),
    "deit3_small_18x2_patch16": Architecture(384, 18, 6, 16, parallel=2),
    "deit3_small_18x2_patch16_unscaled": Architecture(384, 18, 6, 16, layer_scale=None, parallel=2),
    "deit3_base_36_patch16": Architecture(768, 36, 12, 16),
    "deit3_base_36_patch16_unscaled": Architecture(768, 36, 12, 16, layer_scale=None),
    "deit3_base_18x2_patch16": Architecture(768, 18, 12, 16, parallel=2),
    "deit3_base_18x2_patch16_unscaled": Architecture(768, 18, 12, 16, layer_scale=None, parallel=2),
    # DeiT: models.py, arXiv:2012.12877.
    "deit_tiny_patch16": Architecture(192, 12, 3, 16, "deit", None),
    "deit_small_patch16": Architecture(384, 12, 6, 16, "deit", None),
    "deit_base_patch16": Architecture(768, 12, 12, 16, "deit", None),
    "deit_tiny_distilled_patch16": Architecture(192, 12, 3, 16, "deit", None, distilled=True),
    "deit_small_distilled_patch16": Architecture(384, 12, 6, 16, "deit", None, distilled=True),
    "deit_base_distilled_patch16": Architecture(768, 12, 12, 16, "deit", None, distilled=True),
    # CaiT: cait_models.py, arXiv:2103.17239.
    "cait_xxs24": Architecture(192, 24, 4, 16, "cait", 1e-5),
    "cait_xxs36": Architecture(192, 36, 4, 16, "cait", 1e-5),
    "cait_xs24": Architecture(288, 24, 6, 16, "cait", 1e-5),
    "cait_s24": Architecture(384, 24, 8, 16, "cait", 1e-5),
    "cait_s36": Architecture(384, 36, 8, 16, "cait", 1e-6),
    "cait_m36": Architecture(768, 36, 16, 16, "cait", 1e-6),
    "cait_m48": Architecture(768, 48, 16, 16, "cait", 1e-6),
    # ResMLP: resmlp_models.py, arXiv:2105.03404. It has no attention and so no heads.
    "resmlp_12": Architecture(384, 12, 1, 16, "resmlp", 0.1),
    "resmlp_24": Architecture(384, 24, 1, 16, "resmlp", 1e-5),
    "resmlp_36": Architecture(384, 36, 1, 16, "resmlp", 1e-6),
    "resmlp_big_24": Architecture(768, 24, 1, 8, "resmlp", 1e-6),
    # PatchConvNet: patchconvnet_models.py, arXiv:2112.13692. The head is the aggregation layer's.
    "patchconvnet_s60": Architecture(384, 60, 1, 16, "patchconvnet"),
    "patchconvnet_s120": Architecture(384, 120, 1, 16, "patchconvnet", 1e-6),
    "patchconvnet_b60": Architecture(768, 60, 1, 16, "patchconvnet", 1e-6),
    "patchconvnet_b120": Architecture(768, 120, 1, 16, "patchconvnet", 1e-6),
    "patchconvnet_l60": Architecture(1024, 60, 1, 16, "patchconvnet", 1e-6),
    "patchconvnet_l120": Architecture(1024, 120, 1, 16, "patchconvnet", 1e-6),
    "patchconvnet_s60_multi": Architecture(384, 60, 1, 16, "patchconvnet", class_tokens=True),
    # Small enough to learn 8 x 8 digits or CIFAR-10 on two CPU cores; the published models start at 5.7 M parameters.
    "deit3_nano_patch4": Architecture(128, 4, 4, 4),
    "deit3_nano_patch8": Architecture(128, 4, 4, 8),
}

# The names of timm and of facebookresearch/deit: the entry, and the resolution that the name implies.
ALIASES: dict[str, tuple[str, int]] = {
    "deit3_small_patch16_224": ("deit3_small_patch16", 224),
    "deit3_small_patch16_384": ("deit3_small_patch16", 384),
    "deit3_medium_patch16_224": ("deit3_medium_patch16", 224),
    "deit3_base_patch16_224": ("deit3_base_patch16", 224),
    "deit3_base_patch16_384": ("deit3_base_patch16", 384),
    "deit3_large_patch16_224": ("deit3_large_patch16", 224),
    "deit3_large_patch16_384": ("deit3_large_patch16", 384),
    "deit3_huge_patch14_224": ("deit3_huge_patch14", 224),
    "deit_tiny_patch16_LS": ("deit3_tiny_patch16", 224),
    "deit_small_patch16_LS": ("deit3_small_patch16", 224),
    "deit_medium_patch16_LS": ("deit3_medium_patch16", 224),
    "deit_base_patch16_LS": ("deit3_base_patch16", 224),
    "deit_large_patch16_LS": ("deit3_large_patch16", 224),
    "deit_huge_patch14_LS": ("deit3_huge_patch14", 224),
    "deit_huge_patch14_52_LS": ("deit3_huge_52_patch14", 224),
    "deit_huge_patch14_26x2_LS": ("deit3_huge_26x2_patch14", 224),
    "deit_giant_40_patch14_LS": ("deit3_giant_40_patch14", 224),
    "deit_giant_40x2_patch14_LS": ("deit3_giant_40x2_patch14", 224),
    "deit_Giant_48_patch14_LS": ("deit3_giant_48_patch14", 224),
    "deit_Giant_48x2_patch14_LS": ("deit3_giant_48x2_patch14", 224),
    "deit_small_patch16_36_LS": ("deit3_small_36_patch16", 224),
    "deit_small_patch16_36": ("deit3_small_36_patch16_unscaled", 224),
    "deit_small_patch16_18x2_LS": ("deit3_small_18x2_patch16", 224),
    "deit_small_patch16_18x2": ("deit3_small_18x2_patch16_unscaled", 224),
    "deit_base_patch16_36x1_LS": ("deit3_base_36_patch16", 224),
    "deit_base_patch16_36x1": ("deit3_base_36_patch16_unscaled", 224),
    "deit_base_patch16_18x2_LS": ("deit3_base_18x2_patch16", 224),
    "deit_base_patch16_18x2": ("deit3_base_18x2_patch16_unscaled", 224),
    "deit_tiny_patch16_224": ("deit_tiny_patch16", 224),
    "deit_small_patch16_224": ("deit_small_patch16", 224),
    "deit_base_patch16_224": ("deit_base_patch16", 224),
    "deit_base_patch16_384": ("deit_base_patch16", 384),
    "deit_tiny_distilled_patch16_224": ("deit_tiny_distilled_patch16", 224),
    "deit_small_distilled_patch16_224": ("deit_small_distilled_patch16", 224),
    "deit_base_distilled_patch16_224": ("deit_base_distilled_patch16", 224),
    "deit_base_distilled_patch16_384": ("deit_base_distilled_patch16", 384),
    "cait_xxs24_224": ("cait_xxs24", 224),
    "cait_xxs24_384": ("cait_xxs24", 384),
    "cait_xxs36_224": ("cait_xxs36", 224),
    "cait_xxs36_384": ("cait_xxs36", 384),
    "cait_xs24_384": ("cait_xs24", 384),
    "cait_s24_224": ("cait_s24", 224),
    "cait_s24_384": ("cait_s24", 384),
    "cait_s36_384": ("cait_s36", 384),
    "cait_m36_384": ("cait_m36", 384),
    "cait_m48_448": ("cait_m48", 448),
    "cait_XXS24_224": ("cait_xxs24", 224),
    "cait_XXS24": ("cait_xxs24", 384),
    "cait_XXS36_224": ("cait_xxs36", 224),
    "cait_XXS36": ("cait_xxs36", 384),
    "cait_XS24": ("cait_xs24", 384),
    "cait_S24_224": ("cait_s24", 224),
    "cait_S24": ("cait_s24", 384),
    "cait_S36": ("cait_s36", 384),
    "cait_M36": ("cait_m36", 384),
    "cait_M48": ("cait_m48", 448),
    "resmlp_12_224": ("resmlp_12", 224),
    "resmlp_24_224": ("resmlp_24", 224),
    "resmlp_36_224": ("resmlp_36", 224),
    "resmlp_big_24_224": ("resmlp_big_24", 224),
    "resmlpB_24": ("resmlp_big_24", 224),
    "S60": ("patchconvnet_s60", 224),
    "S120": ("patchconvnet_s120", 224),
    "B60": ("patchconvnet_b60", 224),
    "B120": ("patchconvnet_b120", 224),
    "L60": ("patchconvnet_l60", 224),
    "L120": ("patchconvnet_l120", 224),
    "S60_multi": ("patchconvnet_s60_multi", 224),
}


def resolve_name(name: str) -> tuple[str, int]:
    """The entry that `name`, an entry or an alias, stands for, and the resolution it implies, 224 where none.

    Raises RecipeError, one line, for any other name.
    """
    if name in ARCHITECTURES:
        return name, 224
    if name not in ALIASES:
        near = suggest(name, [*ARCHITECTURES, *ALIASES])
        raise RecipeError(f"model.name={name!r}: expected a model of the zoo, which deit-fast zoo lists{near}")
    return ALIASES[name]


def find_architecture(name: str) -> Architecture:
    """The entry `name`, or the one that it is another name of. Raises RecipeError, one line, where there is none."""
    return ARCHITECTURES[resolve_name(name)[0]]


def list_models(pattern: str = "*") -> list[str]:
    """Entries that match a shell pattern, or that have another name which does, in the order of the table."""
    also = {entry for alias, (entry, _) in ALIASES.items() if fnmatchcase(alias, pattern)}
    return [name for name in ARCHITECTURES if name in also or fnmatchcase(name, pattern)]
