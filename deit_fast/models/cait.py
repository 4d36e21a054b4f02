"""CaiT (arXiv:2103.17239): timm's modules and names, with stochastic depth that skips work."""

from timm.layers import get_act_layer
from timm.models.cait import Cait, LayerScaleBlock
from torch import Tensor

from deit_fast.models.initialise import draw_weights
from deit_fast.models.stochastic_depth import rate_of, residual_subset
from deit_fast.recipe.sections import Model
from deit_fast.zoo import Architecture


class SubsetCaitBlock(LayerScaleBlock):
    """timm's block of talking-heads attention and MLP, with `residual_subset` around each in training."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, D] -> [B, N, D]."""
        if not self.training:
            return super().forward(x)
        rate = rate_of(self.drop_path)
        x = residual_subset(x, rate, lambda kept: self.gamma_1 * self.attn(self.norm1(kept)))
        return residual_subset(x, rate, lambda kept: self.gamma_2 * self.mlp(self.norm2(kept)))


def build_cait(architecture: Architecture, section: Model, drop_subset: bool) -> Cait:
    """A CaiT with timm's state dict: images [B, 3, S, S] -> logits [B, K].

    Stochastic depth has the same rate in every self-attention block and none in the two class-attention blocks, as in
    facebookresearch/deit cait_models.py.
    """
    assert section.initial_layer_scale is not None
    model = Cait(
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
    draw_weights(model, section.init_std)
    return model
