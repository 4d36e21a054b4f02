"""Vision transformers of DeiT and DeiT III: timm's modules and names, the reference's regularisation."""

from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, ParallelThingsBlock, VisionTransformer
from torch import Tensor, nn

from deit_fast.models.initialise import draw_weights
from deit_fast.models.stem import MLPStem
from deit_fast.models.stochastic_depth import SubsetBlock, SubsetParallelBlock, drop_path_rates
from deit_fast.recipe.sections import Model
from deit_fast.zoo import Architecture


def build_vit(architecture: Architecture, section: Model, drop_subset: bool) -> VisionTransformer:
    """A vision transformer with timm's state dict, so weights interchange with timm's `deit_*` and `deit3_*` models.

    Takes images [B, 3, S, S], gives logits [B, K]; distilled models in training give those of both heads. Differs from
    timm where facebookresearch/deit models.py and models_v2.py do: stochastic depth by section.drop_path_decay (timm:
    linear), LayerScale from 1e-4 (timm: 1e-6), class token from the same truncated normal as the rest (timm: 1e-6).
    Mean pooling is deit3-jax's: no class token, and the final norm comes before the mean (timm: after it).
    With `drop_subset` the residual branches skip what stochastic depth drops (models/stochastic_depth.py).
    """
    rates = drop_path_rates(section, architecture.depth)
    kind: Any = Block
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
        no_embed_class=architecture.family == "deit3",
        init_values=section.initial_layer_scale,
        drop_rate=section.dropout,
        embed_layer=MLPStem if section.stem == "hmlp" else PatchEmbed,
        act_layer=section.activation,
        block_fn=build_block,  # type: ignore[arg-type]
        weight_init="skip",
    )
    if isinstance(model, VisionTransformerDistilled):
        model.set_distilled_training(True)
    draw_weights(model, section.init_std)
    if section.position == "sincos":
        _fix_positions(model)
    return model


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Position embedding [H x W, D] of sines and cosines in two dimensions, fp32 (deit3-jax src/utils.py, big_vision).

    The D channels are sin(x), cos(x), sin(y), cos(y), at D / 4 frequencies from 1 to 1e-4 in equal ratios.
    """
    height, width = grid
    frequencies = torch.logspace(0, -4, dim // 4)
    x = torch.outer(torch.arange(width).float(), frequencies).expand(height, -1, -1)
    y = torch.outer(torch.arange(height).float(), frequencies)[:, None].expand(-1, width, -1)
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=2).flatten(0, 1)


def _fix_positions(model: VisionTransformer) -> None:
    """Makes the position embedding a buffer of sines and cosines, zero for tokens that have a slot in it."""
    learned = model.pos_embed
    assert learned is not None
    patches = sincos_positions(model.patch_embed.grid_size, model.embed_dim)
    slots = patches.new_zeros(learned.shape[1] - len(patches), model.embed_dim)
    del model.pos_embed
    model.register_buffer("pos_embed", torch.cat([slots, patches])[None])
