"""The attention of a vision transformer's class token in the last block, laid over the images."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from deit_fast.infer.predict import LoadedModel
from deit_fast.zoo import find_architecture, find_family


def has_attention(model: LoadedModel) -> bool:
    """Whether `attention_maps` supports this model: a plain vision transformer with a class token."""
    section = model.recipe.model
    return find_family(section.name).is_vit and section.pool == "token"


@torch.no_grad()
def attention_maps(model: LoadedModel, images: Tensor) -> Tensor:
    """Attention of the class token to the patches in the last block, mean over the heads: fp32 [B, side, side].

    images: float [B, 3, S, S], normalised. The maps are parts of a softmax: patches and prefix tokens together sum to
    1.
    """
    vit: Any = model.model
    seen: list[Tensor] = []
    block = vit.blocks[-1]
    handle = block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        vit.forward_features(images)
    finally:
        handle.remove()
    norm, attention = (
        (block.norm1, block.attn) if hasattr(block, "attn") else (block.attns[0].norm, block.attns[0].attn)
    )
    (tokens,) = seen
    weights = _softmax(attention, norm(tokens))
    architecture = find_architecture(model.recipe.model.name)
    prefix = 1 + architecture.distilled
    patches = weights[:, :, 0, prefix:].mean(dim=1)
    side = model.recipe.model.image_size // architecture.patch_size
    return patches.float().reshape(len(images), side, side)


def _softmax(attention: nn.Module, tokens: Tensor) -> Tensor:
    """The attention's weights [B, heads, N, N] for its input [B, N, C]."""
    each: Any = attention
    batch, count, width = tokens.shape
    query, key, _ = each.qkv(tokens).reshape(batch, count, 3, each.num_heads, width // each.num_heads).unbind(2)
    query, key = each.q_norm(query.transpose(1, 2)), each.k_norm(key.transpose(1, 2))
    return (query * each.scale @ key.transpose(-2, -1)).softmax(dim=-1)


def overlay(image: NDArray[np.uint8], weights: Tensor) -> NDArray[np.uint8]:
    """The image uint8 [H, W, 3], darkened where the map [side, side] is low, and unchanged at its maximum."""
    height, width = image.shape[:2]
    scaled = weights / weights.max().clamp(min=1e-12)
    light = F.interpolate(scaled[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
    shade = 0.15 + 0.85 * light[..., None]
    return np.asarray((image * shade).round().clip(0, 255), np.uint8)
