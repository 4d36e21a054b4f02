"""DeiT III's vision transformer: timm's modules and names, the reference's regularisation and initialisation."""

from timm.layers import DropPath
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from deit_fast.models.stochastic_depth import SubsetBlock
from deit_fast.zoo import Architecture


def deit3(
    architecture: Architecture,
    image_size: int,
    num_classes: int,
    drop_path: float,
    layer_scale: float | None,
    dropout: float,
    drop_subset: bool = False,
) -> VisionTransformer:
    """A DeiT III model with timm's state dict, so weights interchange with timm's `deit3_*` models.

    Takes images [B, 3, image_size, image_size], gives logits [B, num_classes]. Differs from timm's `deit3_*` where
    facebookresearch/deit models_v2.py does: stochastic depth at the same rate in every block (timm: linear in depth),
    LayerScale from 1e-4 (timm: 1e-6), class token from a truncated normal of 0.02 (timm: a normal of 1e-6).
    With `drop_subset` the residual branches skip what stochastic depth drops (models/stochastic_depth.py).
    """
    model = VisionTransformer(
        img_size=image_size,
        patch_size=architecture.patch_size,
        embed_dim=architecture.embed_dim,
        depth=architecture.depth,
        num_heads=architecture.num_heads,
        num_classes=num_classes,
        no_embed_class=True,
        init_values=layer_scale,
        drop_rate=dropout,
        block_fn=SubsetBlock if drop_subset else Block,
    )
    assert model.cls_token is not None
    nn.init.trunc_normal_(model.cls_token, std=0.02)
    if drop_path > 0:
        for block in model.blocks:
            block.drop_path1 = DropPath(drop_path)
            block.drop_path2 = DropPath(drop_path)
    return model
