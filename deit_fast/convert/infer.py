"""The model section of a recipe, read off the shapes of tensors with timm's names."""

import math
import re
from dataclasses import dataclass

from torch import Tensor

from deit_fast.convert.formats.lazy_tensor import BadFileError
from deit_fast.recipe.sections import Model
from deit_fast.zoo import ARCHITECTURES, Architecture

EVAL_CROP_RATIO = {"deit": 0.875, "resmlp": 0.875}
"""The published evaluation's, where it is not 1 (facebookresearch/deit, README_deit)."""


@dataclass(frozen=True)
class Shapes:
    """What tensors say of their model."""

    family: str
    embed_dim: int
    depth: int
    patch_size: int
    parallel: int
    """Attention branches, and MLP branches, of a block."""
    layer_scale: bool
    distilled: bool
    slots: int
    """Position embeddings of tokens that are not patches."""
    grid: tuple[int, int] | None
    """Patches, high and wide; None where the tensors do not say."""
    classes: int | None
    """None: there is no head."""
    has_class_token: bool
    class_tokens: bool
    """A token for each class."""
    hmlp: bool


def read_shapes(tensors: dict[str, Tensor], grid: tuple[int, int] | None = None) -> Shapes:
    """Shapes of a state dict with timm's names; `grid` where the file says it, else square.

    Raises BadFileError for tensors of another kind of model.
    """
    for name, rank in (("pos_embed", 3), ("cls_token", 3), ("head.weight", 2), ("head.bias", 1)):
        if name in tensors and tensors[name].ndim != rank:
            raise BadFileError(f"has {name} {list(tensors[name].shape)}: expected {rank} dimensions")
    stem = "stem" if "stem.proj.weight" in tensors else "patch_embed"
    patches = tensors.get(f"{stem}.proj.weight")
    convolutions = any(name.startswith("patch_embed.proj.0.") for name in tensors) and "norm.weight" in tensors
    numbers = [int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d{1,4})\.", name))]
    if numbers and patches is not None and patches.ndim == 4:
        embed_dim, patch_size = patches.shape[0], patches.shape[2]
    elif numbers and convolutions:
        embed_dim, patch_size = tensors["norm.weight"].shape[0], 16  # as both stems of several convolutions have it
    else:
        some = ", ".join(sorted(tensors)[:3])
        raise BadFileError(f"has {some[:150]!a}: expected the weights of a model of facebookresearch/deit")
    distilled = "dist_token" in tensors
    slots, side = 0, None
    if "pos_embed" in tensors:
        slots = _slots(tensors["pos_embed"].shape[1], distilled, grid)
        side = grid or _square(tensors["pos_embed"].shape[1] - slots)
    family = "deit" if slots else "deit3"
    if "blocks.0.linear_tokens.weight" in tensors:
        family, side = "resmlp", _square(tensors["blocks.0.linear_tokens.weight"].shape[0])
    elif any(name.startswith("blocks_token_only.") for name in tensors):
        family = "cait" if "pos_embed" in tensors else "patchconvnet"
    head = tensors.get("head.weight")
    return Shapes(
        family,
        embed_dim,
        max(numbers) + 1,
        patch_size,
        parallel=sum(1 for name in tensors if re.fullmatch(r"blocks\.0\.attns\.\d+\.norm\.weight", name)) or 1,
        layer_scale=any(re.match(r"blocks\.0\.(ls1|attns\.0\.ls|gamma_1)", name) for name in tensors),
        distilled=distilled,
        slots=slots,
        grid=side,
        classes=None if head is None else head.shape[0],
        has_class_token="cls_token" in tensors,
        class_tokens="cls_token" in tensors and tensors["cls_token"].shape[1] > 1,
        hmlp=convolutions and family != "patchconvnet",
    )


def _square(count: int) -> tuple[int, int]:
    side = math.isqrt(count)
    if side * side != count or not side:
        raise BadFileError(f"has {count} patch positions: expected the square of a number")
    return side, side


def _slots(positions: int, distilled: bool, grid: tuple[int, int] | None) -> int:
    """How many of the positions are of the class and distillation tokens: consecutive squares are further apart."""
    for slots in (2, 0) if distilled else (1, 0):
        patches = positions - slots
        if patches == grid[0] * grid[1] if grid else patches > 0 and math.isqrt(patches) ** 2 == patches:
            return slots
    raise BadFileError(f"has {positions} positions: expected those of a square of patches, and of its tokens")


def find_name(shapes: Shapes) -> str:
    """The zoo's entry with these shapes. Raises BadFileError where there is none."""
    # LayerScale and a class slot: the slot belongs to the class token, and without it this is DeiT III.
    family = "deit3" if shapes.family == "deit" and shapes.layer_scale else shapes.family
    found = [name for name, entry in ARCHITECTURES.items() if entry.family == family and _matches(entry, shapes)]
    # LayerScale can be left out of any model, but some have an entry without it.
    found.sort(key=lambda name: (ARCHITECTURES[name].layer_scale is not None) != shapes.layer_scale)
    if found:
        return found[0]
    kind = f"{family} of width {shapes.embed_dim}, depth {shapes.depth}" + (
        f" x {shapes.parallel}" if shapes.parallel > 1 else ""
    )
    distilled = ", distilled" if shapes.distilled else ""
    raise BadFileError(f"is a {kind}, patch {shapes.patch_size}{distilled}: no such entry in deit_fast.zoo")


def _matches(entry: Architecture, shapes: Shapes) -> bool:
    return (
        (entry.embed_dim, entry.depth, entry.parallel, entry.patch_size, entry.distilled, entry.class_tokens)
        == (shapes.embed_dim, shapes.depth, shapes.parallel, shapes.patch_size, shapes.distilled, shapes.class_tokens)
    )  # fmt: skip


def infer_model(shapes: Shapes, tanh: bool = False, heads: int | None = None) -> Model:
    """The model section for weights of these shapes; `tanh`: trained with GELU's approximation.

    Raises BadFileError where the zoo has no such model, or one with another number of heads.
    """
    name = find_name(shapes)
    entry = ARCHITECTURES[name]
    if heads is not None and heads != entry.num_heads:
        raise BadFileError(f"has {heads} attention heads: expected {entry.num_heads}, as {name} has")
    if shapes.grid is not None and shapes.grid[0] != shapes.grid[1]:
        raise BadFileError(f"has a grid of {shapes.grid[0]} x {shapes.grid[1]} patches: expected a square one")
    return Model(
        name=name,
        image_size=shapes.grid[0] * shapes.patch_size if shapes.grid else 224,
        num_classes=shapes.classes,
        layer_scale="auto" if shapes.layer_scale == (entry.layer_scale is not None) else None,
        pool="token" if shapes.has_class_token or shapes.family == "resmlp" else "avg",
        position="sincos" if shapes.family == "deit3" and not shapes.grid else "learned",
        activation="gelu_tanh" if tanh else "gelu",
        stem="hmlp" if shapes.hmlp else "patch",
    )
