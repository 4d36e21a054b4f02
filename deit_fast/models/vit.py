"""The common part of the vision transformers DeiT and DeiT III: timm's modules, the reference's regularisation."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer
from torch import Tensor, nn

from deit_fast.models.block import FusedBlock
from deit_fast.models.build import ModelFamily, TimmModel
from deit_fast.models.state_dicts import (
    Sizes,
    Weights,
    WeightsError,
    count_blocks,
    image_side,
    inverse,
    rename_block,
    rename_blocks,
)
from deit_fast.models.stem import PATCH_SIZE, MLPStem
from deit_fast.models.stochastic_depth import SubsetBlock, SubsetParallelBlock, drop_path_rates
from deit_fast.recipe.sections import Model
from deit_fast.zoo import FAMILIES, Architecture

# The reference's names in a block of parallel branches, and timm's. Branch 0 has the plain names; branch 1 has names
# with a 1 appended.
_BRANCH = {
    "norm1": "attns.0.norm",
    "attn": "attns.0.attn",
    "gamma_1": "attns.0.ls.gamma",
    "norm11": "attns.1.norm",
    "attn1": "attns.1.attn",
    "gamma_1_1": "attns.1.ls.gamma",
    "norm2": "ffns.0.norm",
    "mlp": "ffns.0.mlp",
    "gamma_2": "ffns.0.ls.gamma",
    "norm21": "ffns.1.norm",
    "mlp1": "ffns.1.mlp",
    "gamma_2_1": "ffns.1.ls.gamma",
}
# In other blocks only LayerScale has another name.
_SCALE = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
_BLOCK = re.compile(
    r"blocks\.\d{1,4}\.((attns|ffns)\.\d+\.)?(norm[12]?|attn\.(qkv|proj)|mlp\.fc[12]|ls[12]?)\.(weight|bias|gamma)"
)


class ViTFamily(ModelFamily):
    """A family of plain vision transformers, described by a module of deit_fast/zoo/families/."""

    def build(self, architecture: Architecture, section: Model, drop_subset: bool) -> VisionTransformer:
        """A vision transformer with timm's state dict, so weights interchange with timm's `deit_*` and `deit3_*`.

        Images [B, 3, S, S] -> logits [B, K]; distilled models in training return the logits of both heads. Three
        settings follow facebookresearch/deit models.py and models_v2.py instead of timm: stochastic depth by
        section.drop_path_decay (timm: linear), LayerScale from 1e-4 (timm: 1e-6), and the class token from the same
        truncated normal as other weights (timm: 1e-6). Mean pooling follows deit3-jax: there is no class token, and the
        final norm comes before the mean (timm: after the mean).
        """
        rates = drop_path_rates(section, architecture.depth)
        kind: Any = FusedBlock
        options: dict[str, Any] = {}
        if architecture.parallel > 1:
            kind, options = ParallelThingsBlock, {"num_parallel": architecture.parallel}
        if drop_subset:
            kind = SubsetParallelBlock if architecture.parallel > 1 else SubsetBlock

        def build_block(*, depth: int, drop_path: float, **sizes: Any) -> nn.Module:
            return kind(depth=depth, drop_path=rates[depth], **sizes, **options)

        vit = VisionTransformerDistilled if architecture.distilled else VisionTransformer
        model = vit(
            img_size=section.image_size,
            patch_size=architecture.patch_size,
            embed_dim=architecture.embed_dim,
            depth=architecture.depth,
            num_heads=architecture.num_heads,
            num_classes=section.classes,
            global_pool=section.pool,
            class_token=section.pool == "token",
            fc_norm=False,
            no_embed_class=not FAMILIES[architecture.family].class_slot,
            init_values=section.initial_layer_scale,
            drop_rate=section.dropout,
            embed_layer=MLPStem if section.stem == "hmlp" else PatchEmbed,
            act_layer=section.activation,
            block_fn=build_block,  # type: ignore[arg-type]
            weight_init="skip",
        )
        if isinstance(model, VisionTransformerDistilled):
            model.set_distilled_training(True)
        if section.position == "sincos":
            _fix_positions(model)
        return model

    def recognises(self, tensors: Weights) -> bool:
        """Whether all weights of the blocks have the names of a plain vision transformer's."""
        patches = tensors.get("patch_embed.proj.weight")
        stem = "patch_embed.proj.0.weight" in tensors and "norm.weight" in tensors
        if not stem and (patches is None or patches.ndim != 4):
            return False
        return _has_vit_blocks(tensors)

    def read(self, tensors: Weights, grid: tuple[int, int] | None) -> Sizes:
        patches = tensors.get("patch_embed.proj.weight")
        patch_size = PATCH_SIZE if patches is None else patches.shape[2]
        entry = {
            "embed_dim": (tensors["norm.weight"] if patches is None else patches).shape[0],
            "depth": count_blocks(tensors),
            "patch_size": patch_size,
            "parallel": sum(1 for name in tensors if re.fullmatch(r"blocks\.0\.attns\.\d+\.norm\.weight", name)) or 1,
            "distilled": "dist_token" in tensors,
        }
        if "pos_embed" in tensors:
            grid = split_positions(tensors, grid)[1]
        fields = {
            "image_size": image_side(grid, patch_size),
            "pool": "token" if "cls_token" in tensors else "avg",
            "position": "learned" if grid else "sincos",
            "stem": "hmlp" if patches is None else "patch",
        }
        return Sizes(entry, has_layer_scale(tensors), fields)

    def prefix_tokens(self, architecture: Architecture, section: Model) -> int:
        return int(section.pool == "token") + architecture.distilled

    def timm_model(self, architecture: Architecture, section: Model) -> TimmModel | None:
        if section.stem == "hmlp":
            return None
        class_slot = FAMILIES[architecture.family].class_slot
        name = "deit_base_patch16_224" if class_slot else "deit3_base_patch16_224"
        if architecture.distilled:
            name = "deit_base_distilled_patch16_224"
        elif architecture.parallel > 1:
            name = "vit_base_patch16_18x2_224"
        arguments: dict[str, Any] = {
            "img_size": section.image_size,
            "patch_size": architecture.patch_size,
            "embed_dim": architecture.embed_dim,
            "depth": architecture.depth,
            "num_heads": architecture.num_heads,
            "init_values": section.initial_layer_scale,
            "no_embed_class": not class_slot,
        }
        if section.pool == "avg":
            arguments |= {"global_pool": "avg", "class_token": False, "fc_norm": False}
        return TimmModel(name, arguments, section.pool)

    def is_reference(self, names: set[str]) -> bool:
        if "blocks.0.norm11.weight" in names:
            return True
        return "blocks.0.gamma_1" in names and _has_vit_blocks({rename_block(name, _SCALE) for name in names})

    def from_reference(self, tensors: Weights) -> dict[str, Tensor]:
        """Renames LayerScale and parallel branches to timm's names, from models_v2.py's; shapes [...] are kept."""
        return rename_blocks(tensors, _BRANCH if "blocks.0.norm11.weight" in tensors else _SCALE)

    def to_reference(self, tensors: Weights) -> dict[str, Tensor]:
        """Renames LayerScale and parallel branches to models_v2.py's names, from timm's; shapes [...] are kept."""
        return rename_blocks(tensors, inverse(_BRANCH) | inverse(_SCALE))


def _has_vit_blocks(names: Iterable[str]) -> bool:
    blocks = [name for name in names if name.startswith("blocks.")]
    return bool(blocks) and all(map(_BLOCK.fullmatch, blocks))


def has_layer_scale(tensors: Weights) -> bool:
    """Whether the blocks of a vision transformer have LayerScale."""
    return any(re.match(r"blocks\.0\.(ls1|attns\.0\.ls)\.", name) for name in tensors)


def split_positions(tensors: Weights, grid: tuple[int, int] | None = None) -> tuple[int, tuple[int, int]]:
    """The number of slots for class and distillation tokens in the positions; and the grid of the other positions.

    tensors: with pos_embed [1, slots + H x W, D]. grid: (H, W) in patches, where the file gives it. Without `grid` the
    other positions have to form a square. Consecutive squares are further apart than the possible numbers of slots, so
    at most one number fits. Raises WeightsError where none fits.
    """
    positions = tensors["pos_embed"].shape[1]
    for slots in (2,) if "dist_token" in tensors else (1, 0) if "cls_token" in tensors else (0,):
        patches = positions - slots
        side = math.isqrt(max(patches, 0))
        if patches == grid[0] * grid[1] if grid else patches > 0 and side * side == patches:
            return slots, grid or (side, side)
    raise WeightsError(f"has {positions} positions: expected those of a square of patches, and of its tokens")


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Position embedding [H x W, D] of sines and cosines in two dimensions, fp32 (deit3-jax src/utils.py, big_vision).

    The D channels are sin(x), cos(x), sin(y), cos(y), each at D / 4 frequencies from 1 to 1e-4 in equal ratios.
    """
    height, width = grid
    frequencies = torch.logspace(0, -4, dim // 4)
    x = torch.outer(torch.arange(width).float(), frequencies).expand(height, -1, -1)
    y = torch.outer(torch.arange(height).float(), frequencies)[:, None].expand(-1, width, -1)
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=2).flatten(0, 1)


def _fix_positions(model: VisionTransformer) -> None:
    """Makes the position embedding a buffer of sines and cosines, with zeros for tokens that have a slot in it."""
    learned = model.pos_embed
    assert learned is not None
    patches = sincos_positions(model.patch_embed.grid_size, model.embed_dim)
    slots = patches.new_zeros(learned.shape[1] - len(patches), model.embed_dim)
    del model.pos_embed
    model.register_buffer("pos_embed", torch.cat([slots, patches])[None])
