"""ResMLP (arXiv:2105.03404): timm's modules and names, with the reference's initial weights."""

import re
from functools import partial
from typing import Any

from timm.layers import get_act_layer
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from torch import Tensor

from deit_fast.models.build import ModelFamily, TimmModel
from deit_fast.models.state_dicts import (
    Sizes,
    Weights,
    count_blocks,
    image_side,
    inverse,
    rename_blocks,
    square_grid,
)
from deit_fast.models.stochastic_depth import rate_of, residual_subset
from deit_fast.recipe.sections import Model
from deit_fast.zoo import Architecture


class SubsetResBlock(ResBlock):
    """timm's block of token mixing and MLP, with `residual_subset` around each of the two in training."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, D] -> [B, N, D]."""
        if not self.training:
            return super().forward(x)
        rate = rate_of(self.drop_path)
        x = residual_subset(
            x, rate, lambda kept: self.ls1 * self.linear_tokens(self.norm1(kept).transpose(1, 2)).transpose(1, 2)
        )
        return residual_subset(x, rate, lambda kept: self.ls2 * self.mlp_channels(self.norm2(kept)))


# The reference's names of a block's parts, and timm's.
_REFERENCE = {"attn": "linear_tokens", "mlp": "mlp_channels", "gamma_1": "ls1", "gamma_2": "ls2"}
# Suffixes of the names of affine norms, whose shape is [D] in the reference and [1, 1, D] in timm.
_AFFINE = (".alpha", ".beta")
# The sizes (embed_dim, depth) of the models that timm makes by name only.
_TIMM = {(384, 12): "resmlp_12_224", (384, 24): "resmlp_24_224", (384, 36): "resmlp_36_224",
         (768, 24): "resmlp_big_24_224"}  # fmt: skip


class ResMLPFamily(ModelFamily):
    """ResMLP: timm's `resmlp_*`."""

    one_resolution = "linear_tokens"

    def build(self, architecture: Architecture, section: Model, drop_subset: bool) -> MlpMixer:
        """A ResMLP with timm's state dict: images [B, 3, S, S] -> logits [B, K].

        Its token mixing has a weight for each pair of patches, so weights fit one resolution only. Stochastic depth has
        the same rate in every block. Two initial weights follow facebookresearch/deit resmlp_models.py and differ from
        timm's: linear layers are from a truncated normal (timm: Xavier, and zeros in the head), and LayerScale starts
        at 0.1 in the model of 12 blocks.
        """
        kind = SubsetResBlock if drop_subset else ResBlock
        assert section.initial_layer_scale is not None
        block: Any = partial(kind, init_values=section.initial_layer_scale)
        return MlpMixer(
            img_size=section.image_size,
            patch_size=architecture.patch_size,
            num_classes=section.classes,
            embed_dim=architecture.embed_dim,
            num_blocks=architecture.depth,
            mlp_ratio=4,
            block_layer=block,
            norm_layer=Affine,
            act_layer=get_act_layer(section.activation),
            drop_rate=section.dropout,
            drop_path_rate=section.drop_path,
        )

    def recognises(self, tensors: Weights) -> bool:
        """Whether the blocks mix tokens by linear layers."""
        return "blocks.0.linear_tokens.weight" in tensors

    def read(self, tensors: Weights, grid: tuple[int, int] | None) -> Sizes:
        embed_dim, _, patch_size, _ = tensors["stem.proj.weight"].shape
        entry = {"embed_dim": embed_dim, "depth": count_blocks(tensors), "patch_size": patch_size}
        grid = square_grid(tensors["blocks.0.linear_tokens.weight"].shape[0])
        return Sizes(entry, "blocks.0.ls1" in tensors, {"image_size": image_side(grid, patch_size)})

    def timm_model(self, architecture: Architecture, section: Model) -> TimmModel | None:
        name = _TIMM.get((architecture.embed_dim, architecture.depth))
        return None if name is None else TimmModel(name, {"img_size": section.image_size}, pool="avg")

    def is_reference(self, names: set[str]) -> bool:
        return {"blocks.0.norm1.alpha", "patch_embed.proj.weight"} <= names

    def from_reference(self, tensors: Weights) -> dict[str, Tensor]:
        """Renames resmlp_models.py's weights to timm's names; its affine layers' vectors [D] become [1, 1, D]."""
        return {
            re.sub(r"^patch_embed\.", "stem.", name): tensor.reshape(1, 1, -1) if name.endswith(_AFFINE) else tensor
            for name, tensor in rename_blocks(tensors, _REFERENCE).items()
        }

    def to_reference(self, tensors: Weights) -> dict[str, Tensor]:
        """Renames timm's weights to resmlp_models.py's names, and reshapes affine layers [1, 1, D] to vectors [D]."""
        return {
            re.sub(r"^stem\.", "patch_embed.", name): tensor.flatten() if name.endswith(_AFFINE) else tensor
            for name, tensor in rename_blocks(tensors, inverse(_REFERENCE)).items()
        }


FAMILY = ResMLPFamily()
