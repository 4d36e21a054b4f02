"""The vision transformer of DeiT III, with the names and the layout of the reference's state dict."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        width = dim // self.heads
        q, k, v = self.qkv(x).split(dim, dim=2)
        q, k, v = (part.reshape(batch, tokens, self.heads, width).transpose(1, 2) for part in (q, k, v))
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(width), dim=3)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        return self.fc2(0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, layer_scale: float | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Tensor, masks: Iterator[Tensor] | None, rate: float) -> Tensor:
        x = x + keep(self._scaled(self.attn(self.norm1(x)), self.gamma_1), masks, rate)
        return x + keep(self._scaled(self.mlp(self.norm2(x)), self.gamma_2), masks, rate)

    def _scaled(self, branch: Tensor, gamma: Tensor | None) -> Tensor:
        return branch if gamma is None else gamma * branch


def keep(branch: Tensor, masks: Iterator[Tensor] | None, rate: float) -> Tensor:
    """Stochastic depth: the samples whose mask [B] is 1, scaled by 1 / (1 - rate)."""
    if masks is None:
        return branch
    return branch * next(masks)[:, None, None] / (1 - rate)


class VisionTransformer(nn.Module):
    """images float [B, 3, S, S] -> logits [B, K]. The position embedding has no slot for the class token."""

    def __init__(
        self, size: int, patch: int, dim: int, depth: int, heads: int, classes: int, layer_scale: float | None,
        drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.drop_path = drop_path
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch, stride=patch)})
        self.blocks = nn.ModuleList(Block(dim, heads, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)
        for weight in (self.cls_token, self.pos_embed, *(m.weight for m in self.modules() if isinstance(m, nn.Linear))):
            nn.init.trunc_normal_(weight, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, masks: list[Tensor] | None = None) -> Tensor:
        """masks: float [B] of 0 and 1 for each residual branch, in order; None draws them in training."""
        rate = self.drop_path if self.training else 0.0
        if masks is None and rate > 0:
            masks = [(torch.rand(len(images)) >= rate).float() for _ in range(2 * len(self.blocks))]
        given = iter(masks) if masks is not None else None
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2) + self.pos_embed
        x = torch.cat([self.cls_token.expand(len(x), 1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x, given, rate)  # the same rate in every block
        return self.head(self.norm(x)[:, 0])
