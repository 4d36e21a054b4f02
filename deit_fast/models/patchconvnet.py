"""PatchConvNet: "Augmenting convolutional networks with attention-based aggregation", arXiv:2112.13692.

It has a convolutional stem that makes patches of 16 x 16 pixels, then a column of residual convolutional blocks at that
resolution, and one attention layer in which a class token, or a token per class, collects features for the head.
Parameters have the names of facebookresearch/deit patchconvnet_models.py, so that its weights load. In the model with a
token per class the reference has one linear layer with one output for each of 1,000 classes; here they are one layer.
"""

import itertools
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, get_act_layer
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models.cait import ClassAttn, LayerScaleBlockClassAttn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deit_fast.models.build import ModelFamily
from deit_fast.models.state_dicts import Sizes, Weights, WeightsError, count_blocks, image_side
from deit_fast.models.stochastic_depth import drop_path_rates, rate_of, residual_subset
from deit_fast.recipe.sections import Model
from deit_fast.zoo import Architecture

EPS = 1e-6  # epsilon of layer norms
PATCH_SIZE = 16  # side of a patch, pixels: the product of the stem's strides


class StridedStem(nn.Module):
    """Four 3 x 3 convolutions of stride 2 with activations between them; the width doubles each time, up to D."""

    def __init__(self, embed_dim: int, activation: type[nn.Module]) -> None:
        super().__init__()
        widths = [3, embed_dim // 8, embed_dim // 4, embed_dim // 2, embed_dim]
        layers: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            layers += [nn.Sequential(nn.Conv2d(narrow, wide, 3, 2, 1, bias=False)), activation()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, ceil(H / 16), ceil(W / 16), D]."""
        return self.proj(images).permute(0, 2, 3, 1)


class ConvMixer(nn.Module):
    """1 x 1, depthwise 3 x 3, squeeze-and-excitation to a quarter of the width, 1 x 1: [B, H, W, D], same shape out."""

    def __init__(self, dim: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.qkv_pos = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            activation(),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            activation(),
            SqueezeExcite(dim, rd_ratio=0.25),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        # The layout is channels-last throughout: the norm needs it, and convolutions are fastest with it.
        """[B, H, W, D] -> [B, H, W, D]."""
        return self.qkv_pos(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvBlock(nn.Module):
    """A block's only residual branch: layer norm, ConvMixer, LayerScale, stochastic depth; [B, H, W, D]."""

    def __init__(self, dim: int, layer_scale: float, rate: float, subset: bool, activation: type[nn.Module]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = ConvMixer(dim, activation)
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(rate) if rate else nn.Identity()
        self.subset = subset

    def branch(self, x: Tensor) -> Tensor:
        """The branch's scaled output [B, H, W, D] for x [B, H, W, D], before stochastic depth."""
        return self.gamma_1 * self.attn(self.norm1(x))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]: x plus its branch, for the samples that stochastic depth keeps."""
        if self.training and self.subset:
            return residual_subset(x, rate_of(self.drop_path), self.branch)
        return x + self.drop_path(self.branch(x))


class ClassTokensAttention(ClassAttn):
    """Attention from K class tokens to the patches only: tokens and patches [B, K + N, D] -> [B, K, D]."""

    def __init__(self, dim: int, num_heads: int, *, num_classes: int, **options: object) -> None:
        super().__init__(dim, num_heads, **options)  # type: ignore[arg-type]
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Class tokens and then patches [B, K + N, D] -> the features of each class token [B, K, D]."""
        tokens, patches = x[:, : self.num_classes], x[:, self.num_classes :]
        heads = [
            linear(part).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # B H . D/H
            for linear, part in ((self.q, tokens), (self.k, patches), (self.v, patches))
        ]
        return self.proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class PatchConvNet(nn.Module):
    """Images [B, 3, H, W] of any size -> logits [B, K]."""

    def __init__(self, architecture: Architecture, section: Model, drop_subset: bool) -> None:
        super().__init__()
        dim, layer_scale = architecture.embed_dim, section.initial_layer_scale
        assert layer_scale is not None
        activation = get_act_layer(section.activation)
        self.num_classes, self.embed_dim, self.num_features = section.classes, dim, dim
        self.class_tokens = architecture.class_tokens
        self.grad_checkpointing = False
        self.patch_embed = StridedStem(dim, activation)
        self.cls_token = nn.Parameter(torch.zeros(1, section.classes if self.class_tokens else 1, dim))
        self.blocks = nn.ModuleList(
            ConvBlock(dim, layer_scale, rate, drop_subset, activation)
            for rate in drop_path_rates(section, architecture.depth)
        )
        attention: Any = partial(ClassTokensAttention, num_classes=section.classes) if self.class_tokens else ClassAttn
        norm: Any = partial(nn.LayerNorm, eps=EPS)
        aggregation = LayerScaleBlockClassAttn(dim, architecture.num_heads, mlp_ratio=3.0, qkv_bias=True,
                                               init_values=layer_scale, act_layer=activation, norm_layer=norm,
                                               attn_block=attention)  # fmt: skip
        self.blocks_token_only = nn.ModuleList([aggregation])
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.head_drop = nn.Dropout(section.dropout)
        self.head = nn.Linear(dim, section.classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether the backward pass recomputes each block's activations instead of keeping them."""
        self.grad_checkpointing = enable

    def forward_features(self, images: Tensor) -> Tensor:
        """The normalised class token [B, 1, D], or one per class [B, K, D]."""
        x = self.patch_embed(images)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)
        patches = x.flatten(1, 2)
        tokens = self.cls_token.expand(len(x), -1, -1)
        for aggregation in self.blocks_token_only:
            tokens = aggregation(patches, tokens)
        return self.norm(tokens)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, 1 or K, D] -> logits [B, K]; with `pre_logits` features [B, D], the mean over class tokens."""
        if pre_logits:
            return self.head_drop(tokens.mean(1))
        tokens = self.head_drop(tokens)
        if self.class_tokens:  # each class's token is multiplied with its own row only
            return (tokens * self.head.weight).sum(2) + self.head.bias
        return self.head(tokens[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> logits [B, K]."""
        return self.forward_head(self.forward_features(images))


class PatchConvNetFamily(ModelFamily):
    """PatchConvNet, with one class token or a token per class. timm has no such model."""

    def build(self, architecture: Architecture, section: Model, drop_subset: bool) -> PatchConvNet:
        """A PatchConvNet with the reference's state dict: images [B, 3, H, W] -> logits [B, K]."""
        return PatchConvNet(architecture, section, drop_subset)

    def recognises(self, tensors: Weights) -> bool:
        """Whether there are a stem of several convolutions and an attention layer after the blocks."""
        return "patch_embed.proj.0.0.weight" in tensors and any(
            name.startswith("blocks_token_only.") for name in tensors
        )

    def read(self, tensors: Weights, grid: tuple[int, int] | None) -> Sizes:
        entry = {
            "embed_dim": tensors["norm.weight"].shape[0],
            "depth": count_blocks(tensors),
            "patch_size": PATCH_SIZE,
            "class_tokens": tensors["cls_token"].shape[1] > 1,
        }
        return Sizes(entry, "blocks.0.gamma_1" in tensors, {"image_size": image_side(None, PATCH_SIZE)})

    def is_reference(self, names: set[str]) -> bool:
        """Whether these are the reference's names with one head per class; its other names are this project's too."""
        return {"head.0.weight", "blocks_token_only.0.gamma_1"} <= names

    def from_reference(self, tensors: Weights) -> dict[str, Tensor]:
        """Joins the reference's linear layers [1, D], one per class, to one head of weight [K, D] and bias [K].

        Raises WeightsError where a class lacks its layer.
        """
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
        count = sum(name.startswith("head.") for name in tensors) // 2
        for kind in ("weight", "bias"):
            rows = [tensors.get(f"head.{label}.{kind}") for label in range(count)]
            if any(row is None or row.shape[:1] != (1,) for row in rows):
                raise WeightsError(f"has not one row head.K.{kind} for each of {count} classes")
            kept[f"head.{kind}"] = torch.cat([row for row in rows if row is not None])
        return kept

    def to_reference(self, tensors: Weights) -> dict[str, Tensor]:
        """Splits the head [K, D] of a model with a token per class into one linear layer [1, D] per class.

        The weights of other models have the reference's names already.
        """
        if tensors["cls_token"].shape[1] == 1:
            return dict(tensors)
        split = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
        for label in range(len(tensors["head.weight"])):
            for kind in ("weight", "bias"):
                split[f"head.{label}.{kind}"] = tensors[f"head.{kind}"][label : label + 1].clone()
        return split


FAMILY = PatchConvNetFamily()
