"""ResMLP (arXiv:2105.03404): timm's modules and names, the reference's initial weights."""

from functools import partial
from typing import Any

from timm.layers import get_act_layer
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from torch import Tensor

from deit_fast.models.initialise import draw_weights
from deit_fast.models.stochastic_depth import rate_of, residual_subset
from deit_fast.recipe.sections import Model
from deit_fast.zoo import Architecture


class SubsetResBlock(ResBlock):
    """timm's block of token mixing and MLP, with `residual_subset` around each in training."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, D] -> [B, N, D]."""
        if not self.training:
            return super().forward(x)
        rate = rate_of(self.drop_path)
        x = residual_subset(
            x, rate, lambda kept: self.ls1 * self.linear_tokens(self.norm1(kept).transpose(1, 2)).transpose(1, 2)
        )
        return residual_subset(x, rate, lambda kept: self.ls2 * self.mlp_channels(self.norm2(kept)))


def build_resmlp(architecture: Architecture, section: Model, drop_subset: bool) -> MlpMixer:
    """A ResMLP with timm's state dict: images [B, 3, S, S] -> logits [B, K].

    Its token mixing has a weight for each pair of patches, so weights fit one resolution only. Stochastic depth has the
    same rate in every block. Differs from timm where facebookresearch/deit resmlp_models.py does: linear layers from
    the truncated normal (timm: Xavier's, and a head of zeros), LayerScale from 0.1 in the model of 12 blocks.
    """
    kind = SubsetResBlock if drop_subset else ResBlock
    assert section.initial_layer_scale is not None
    block: Any = partial(kind, init_values=section.initial_layer_scale)
    model = MlpMixer(
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
    model.stem.proj.reset_parameters()  # torch's own, where timm has another
    draw_weights(model, section.init_std)
    return model
