"""PatchConvNet after its paper's figures, from a state dict, on tokens of a square grid: slow and obvious."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def patchconvnet_logits(weights: dict[str, Tensor], images: Tensor, depth: int, class_tokens: bool) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def conv(x: Tensor, name: str, **options: int) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **options)

    x = images
    for layer in (0, 2, 4, 6):
        x = conv(x if layer == 0 else F.gelu(x), f"patch_embed.proj.{layer}.0", stride=2, padding=1)
    batch, dim, height, width = x.shape
    x = x.reshape(batch, dim, -1).mT
    for index in range(depth):
        block = f"blocks.{index}"
        y = norm(x, f"{block}.norm1").mT.reshape(batch, dim, height, width)
        y = F.gelu(conv(y, f"{block}.attn.qkv_pos.0"))
        y = F.gelu(conv(y, f"{block}.attn.qkv_pos.2", padding=1, groups=dim))
        squeezed = F.relu(conv(y.mean((2, 3), keepdim=True), f"{block}.attn.qkv_pos.4.conv_reduce"))
        y = y * torch.sigmoid(conv(squeezed, f"{block}.attn.qkv_pos.4.conv_expand"))
        y = conv(y, f"{block}.attn.qkv_pos.5").reshape(batch, dim, -1).mT
        x = x + weights[f"{block}.gamma_1"] * y
    tokens, block = weights["cls_token"].expand(batch, -1, -1), "blocks_token_only.0"
    seen = norm(torch.cat([tokens, x], dim=1), f"{block}.norm1")
    asking = seen[:, : tokens.shape[1]]
    if class_tokens:
        seen = seen[:, tokens.shape[1] :]
    scores = linear(asking, f"{block}.attn.q") @ linear(seen, f"{block}.attn.k").mT / math.sqrt(dim)
    found = linear(scores.softmax(-1) @ linear(seen, f"{block}.attn.v"), f"{block}.attn.proj")
    tokens = tokens + weights[f"{block}.gamma_1"] * found
    hidden = F.gelu(linear(norm(tokens, f"{block}.norm2"), f"{block}.mlp.fc1"))
    tokens = norm(tokens + weights[f"{block}.gamma_2"] * linear(hidden, f"{block}.mlp.fc2"), "norm")
    if not class_tokens:
        return linear(tokens[:, 0], "head")
    columns = [
        tokens[:, k] @ weights["head.weight"][k] + weights["head.bias"][k] for k in range(len(weights["head.bias"]))
    ]
    return torch.stack(columns, dim=1)
