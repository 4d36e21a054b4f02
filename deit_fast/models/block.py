"""timm's transformer block; on a GPU, training runs everything but matrix products with the kernels of block_ops.py."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp, activations
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from deit_fast.models.block_ops import Kept, Norm, add, add_norm, gelu, norm, split_heads

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_ON_CPU = False  # tests turn this on to run the kernels in Triton's interpreter

Keep = Callable[[nn.Module, Tensor], Kept]
"""(stochastic depth's module, the residual stream [B, N, D]) -> the samples on which the branch runs."""


class FusedBlock(Block):
    """timm's pre-norm transformer block. In evaluation, and on CPUs, timm's own forward runs.

    On a GPU, training moves fewer bytes through memory: one pass adds a branch's output to the stream and computes the
    next norm. All sums are in fp32. The norm's output, which its backward pass reads again, has the type of the matrix
    products.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens [B, N, D] -> [B, N, D]."""
        if self.training and not args and not kwargs and can_fuse(self, x):
            return fused_forward(self, x, keep_all)
        return super().forward(x, *args, **kwargs)


def keep_all(drop_path: nn.Module, x: Tensor) -> Kept:
    """Keeps all samples.

    Each is scaled by the factor of timm's DropPath: 1, or with stochastic depth 0 or a number above 1.
    """
    return Kept(drop_path(x.new_ones(x.shape[0], 1, 1)).flatten(), None)


def can_fuse(block: Block, x: Tensor) -> bool:
    """Whether the kernels can run this block on these tokens: on a GPU with Triton, with the layers of DeiT III.

    A block with a replaced layer cannot use the kernels. Hooks of the layers inside the block are not called by them.
    """
    if not _HAS_TRITON or not (x.is_cuda or _ON_CPU) or x.dtype != torch.float32 or x.ndim != 3:
        return False
    attention: Any = block.attn
    mlp: Any = block.mlp
    if type(attention) is not Attention or type(mlp) is not Mlp or _approximation(mlp.act) is None:
        return False
    layers = [attention.qkv, attention.proj, mlp.fc1, mlp.fc2]
    if any(type(layer) is not nn.Linear or layer.bias is None for layer in layers):
        return False
    unused = [attention.q_norm, attention.k_norm, attention.norm, mlp.norm]
    dropouts = [attention.attn_drop, attention.proj_drop, mlp.drop1, mlp.drop2]
    return (
        attention.fused_attn
        and getattr(attention, "gate", None) is None
        and all(isinstance(layer, nn.Identity) for layer in unused)
        and all(dropout.p == 0 for dropout in dropouts)
    )


def fused_forward(block: Any, x: Tensor, keep: Keep) -> Tensor:
    """Runs a block that `can_fuse` in training: tokens [B, N, D] -> [B, N, D]; `keep` draws each branch's samples."""
    attention, mlp = block.attn, block.mlp
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    first, second = keep(block.drop_path1, x), keep(block.drop_path2, x)

    x, kept = norm(x, first, _norm_of(block.norm1, dtype))
    q, k, v = split_heads(_unbiased(attention.qkv, kept), attention.qkv.bias, attention.num_heads)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    branch = _unbiased(attention.proj, mixed)
    gamma = getattr(block.ls1, "gamma", None)
    x, kept = add_norm(x, branch, attention.proj.bias, gamma, first, second, _norm_of(block.norm2, dtype))
    hidden = gelu(_unbiased(mlp.fc1, kept), mlp.fc1.bias, _approximation(mlp.act) or "none")
    branch = _unbiased(mlp.fc2, hidden)
    return add(x, branch, mlp.fc2.bias, getattr(block.ls2, "gamma", None), second)


def _unbiased(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer's output, without a gradient for the layer's bias: the operator that takes the output computes it."""
    return F.linear(x, layer.weight, layer.bias.detach())


def _norm_of(layer: nn.LayerNorm, dtype: torch.dtype) -> Norm:
    return Norm(layer.weight, layer.bias, layer.eps, dtype)


def _approximation(activation: nn.Module) -> str | None:
    """torch's name of the GELU's approximation; None for another activation."""
    if type(activation) is nn.GELU:
        return activation.approximate
    return {activations.GELU: "none", activations.GELUTanh: "tanh"}.get(type(activation))
