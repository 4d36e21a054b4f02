"""CaiT (arXiv:2103.17239): timm's modules and names, with stochastic depth that skips work."""

from timm.layers import get_act_layer
from timm.models.cait import Cait, LayerScaleBlock
from torch import Tensor

from deit_fast.models.build import ModelFamily, TimmModel
from deit_fast.models.state_dicts import Sizes, Weights, count_blocks, image_side, square_grid
from deit_fast.models.stochastic_depth import rate_of, residual_subset
from deit_fast.recipe.sections import Model
from deit_fast.zoo import Architecture


class SubsetCaitBlock(LayerScaleBlock):
    """timm's block of talking-heads attention and MLP, with `residual_subset` around each of the two in training."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, D] -> [B, N, D]."""
        if not self.training:
            return super().forward(x)
        rate = rate_of(self.drop_path)
        x = residual_subset(x, rate, lambda kept: self.gamma_1 * self.attn(self.norm1(kept)))
        return residual_subset(x, rate, lambda kept: self.gamma_2 * self.mlp(self.norm2(kept)))


class CaitFamily(ModelFamily):
    """CaiT: timm's `cait_*`, in which the class token joins after the self-attention blocks."""

    def build(self, architecture: Architecture, section: Model, drop_subset: bool) -> Cait:
        """A CaiT with timm's state dict: images [B, 3, S, S] -> logits [B, K].

        Stochastic depth has the same rate in every self-attention block and is absent from the two class-attention
        blocks, as in facebookresearch/deit cait_models.py.
        """
        assert section.initial_layer_scale is not None
        return Cait(
            img_size=section.image_size,
            patch_size=architecture.patch_size,
            num_classes=section.classes,
            embed_dim=architecture.embed_dim,
            depth=architecture.depth,
            num_heads=architecture.num_heads,
            drop_rate=section.dropout,
            drop_path_rate=section.drop_path,
            block_layers=SubsetCaitBlock if drop_subset else LayerScaleBlock,
            act_layer=get_act_layer(section.activation),
            init_values=section.initial_layer_scale,
        )

    def recognises(self, tensors: Weights) -> bool:
        """Whether there is class attention after the blocks and a position embedding, which PatchConvNet lacks."""
        return {"patch_embed.proj.weight", "pos_embed"} <= tensors.keys() and any(
            name.startswith("blocks_token_only.") for name in tensors
        )

    def read(self, tensors: Weights, grid: tuple[int, int] | None) -> Sizes:
        embed_dim, _, patch_size, _ = tensors["patch_embed.proj.weight"].shape
        entry = {"embed_dim": embed_dim, "depth": count_blocks(tensors), "patch_size": patch_size}
        grid = grid or square_grid(tensors["pos_embed"].shape[1])
        return Sizes(entry, "blocks.0.gamma_1" in tensors, {"image_size": image_side(grid, patch_size)})

    def timm_model(self, architecture: Architecture, section: Model) -> TimmModel:
        return TimmModel(
            "cait_s24_224",
            {
                "img_size": section.image_size,
                "patch_size": architecture.patch_size,
                "embed_dim": architecture.embed_dim,
                "depth": architecture.depth,
                "num_heads": architecture.num_heads,
            },
        )


FAMILY = CaitFamily()
