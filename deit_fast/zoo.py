"""The model table: one entry per architecture. Plain data, so that recipes are checked without importing torch."""

from dataclasses import dataclass
from typing import Literal

from deit_fast.errors import RecipeError, suggest


@dataclass(frozen=True)
class Architecture:
    """A vision transformer (facebookresearch/deit, models.py and models_v2.py)."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    family: Literal["deit3", "deit"] = "deit3"
    """deit3: position embedding without a class slot, LayerScale. deit: with one, none."""
    layer_scale: float | None = 1e-4
    """Initial value, where a recipe does not say otherwise."""
    parallel: int = 1
    """Attention branches, and then MLP branches, that are summed in a block (arXiv:2203.09795, section 3)."""
    distilled: bool = False
    """Whether there is a distillation token, with a head of its own."""


ARCHITECTURES: dict[str, Architecture] = {
    "deit3_tiny_patch16": Architecture(192, 12, 3, 16),
    "deit3_small_patch16": Architecture(384, 12, 6, 16),
    "deit3_medium_patch16": Architecture(512, 12, 8, 16),
    "deit3_base_patch16": Architecture(768, 12, 12, 16),
    "deit3_large_patch16": Architecture(1024, 24, 16, 16),
    "deit3_huge_patch14": Architecture(1280, 32, 16, 14),
    "deit_tiny_patch16": Architecture(192, 12, 3, 16, "deit", None),
    "deit_small_patch16": Architecture(384, 12, 6, 16, "deit", None),
    "deit_base_patch16": Architecture(768, 12, 12, 16, "deit", None),
    "deit_tiny_distilled_patch16": Architecture(192, 12, 3, 16, "deit", None, distilled=True),
    "deit_small_distilled_patch16": Architecture(384, 12, 6, 16, "deit", None, distilled=True),
    "deit_base_distilled_patch16": Architecture(768, 12, 12, 16, "deit", None, distilled=True),
    # Small enough to learn 8 x 8 digits or CIFAR-10 on two CPU cores; the published models start at 5.7 M parameters.
    "deit3_nano_patch4": Architecture(128, 4, 4, 4),
    "deit3_nano_patch8": Architecture(128, 4, 4, 8),
}


def find_architecture(name: str) -> Architecture:
    """The entry `name`. Raises RecipeError, one line, where there is none."""
    if name not in ARCHITECTURES:
        choices = ", ".join(ARCHITECTURES)
        raise RecipeError(f"model.name={name!r}: expected one of {choices}{suggest(name, ARCHITECTURES)}")
    return ARCHITECTURES[name]
