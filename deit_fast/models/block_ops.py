"""The kernels of block_kernels.py as operators that torch.compile can trace, with their gradients.

An operator whose name ends in an underscore writes to its first argument. All tensors are contiguous, except queries,
keys and values. The linear layers before these operators get their biases detached: each function here also takes the
bias of the layer before it and returns the bias's gradient, which is a sum over values that are in registers anyway.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Kept(NamedTuple):
    """The samples on which a branch runs: K of a batch of B."""

    scale: Tensor  # fp32 [K]: factors of the branch's output
    place: Tensor | None  # int32 [B]: each sample's place among the K, or a number from K on; None keeps all


class Norm(NamedTuple):
    """A LayerNorm over D channels, applied to kept samples, and the type of its output."""

    weight: Tensor  # D
    bias: Tensor  # D
    eps: float
    dtype: torch.dtype


def norm(stream: Tensor, kept: Kept, layer: Norm) -> tuple[Tensor, Tensor]:
    """The residual stream [B, N, D] itself, and its LayerNorm for the kept samples [K, N, D]."""
    return _NormOf.apply(stream, kept.place, len(kept.scale), *layer)


def add_norm(
    stream: Tensor, branch: Tensor, last_bias: Tensor, gamma: Tensor | None, kept: Kept, following: Kept, layer: Norm
) -> tuple[Tensor, Tensor]:
    """`add`, and the LayerNorm [K, N, D] of its result for the samples that the following branch keeps."""
    return _AddNorm.apply(stream, branch, last_bias, gamma, *kept, following.place, len(following.scale), *layer)


def add(stream: Tensor, branch: Tensor, last_bias: Tensor, gamma: Tensor | None, kept: Kept) -> Tensor:
    """The residual stream [B, N, D] plus scale * gamma * branch for the kept samples; branch is [K, N, D].

    last_bias: the bias of the layer whose output `branch` is. gamma: LayerScale's [D], None without LayerScale.
    """
    return _Add.apply(stream, branch, last_bias, gamma, *kept)


def gelu(given: Tensor, bias: Tensor, approximate: str) -> Tensor:
    """GELU of [..., D], the output of a layer with this bias."""
    return _Gelu.apply(given, bias, approximate)


def split_heads(qkv: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each [B, H, N, D / H], from the output [B, N, 3 D] of a layer with this bias."""
    return _SplitHeads.apply(qkv, bias, heads)


# ------------------------------------------------------------------------------------------------------- the operators
PROGRAMS = 528
"""Number of programs that sum over rows: four for each of the 132 multiprocessors of an H100. The operators take it as
an argument, so that it is part of the key in the compiler's cache."""
STRIPES = 64
"""The same number for kernels whose programs each sum one stripe of the columns."""

_LIBRARY = torch.library.Library("deit_fast", "FRAGMENT")


def _define(schema: str, allocate: Callable[..., Any]) -> Any:
    """Defines an operator: it calls the launch of the same name in block_kernels.py with the results of `allocate`."""
    name = schema.partition("(")[0]

    def run(*given: Any) -> Any:
        from deit_fast.models import block_kernels  # needs Triton, which some machines lack

        results = allocate(*given)
        tensors = () if results is None else results if isinstance(results, tuple) else (results,)
        getattr(block_kernels, name)(*given, *tensors)
        return results

    _LIBRARY.define(schema)
    for key in ("CUDA", "CPU"):  # on a CPU, Triton's interpreter can run the kernels
        _LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"deit_fast::{name}", allocate, lib=_LIBRARY)
    return getattr(torch.ops.deit_fast, name)


def _sums(rows: Tensor, programs: int, *count: int) -> Tensor:
    width = rows.shape[-1]
    return rows.new_empty(min(programs, rows.numel() // width), *count, width, dtype=torch.float32)


def _like_norm(stream: Tensor, kept: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm's output, the normalised input before weight and bias, and one over the standard deviation."""
    _, tokens, width = stream.shape
    out, unit = (stream.new_empty(kept, tokens, width, dtype=dtype) for _ in range(2))
    return out, unit, stream.new_empty(kept, tokens)


def _like_merged(query: Tensor, key: Tensor, value: Tensor, programs: int) -> tuple[Tensor, Tensor]:
    samples, heads, tokens, width = query.shape
    merged = query.new_empty(samples, tokens, 3 * heads * width)
    return merged, _sums(merged, programs)


_ADDED = "Tensor branch, Tensor? gamma, Tensor scale, Tensor? branch_place"
_NORM = "Tensor? place, int kept, Tensor weight, Tensor bias, float eps, ScalarType dtype"
_NORMED = "Tensor out_grad, Tensor unit, Tensor deviation, Tensor weight, Tensor? place"
_norm = _define(
    f"norm(Tensor stream, {_NORM}) -> (Tensor, Tensor, Tensor)",
    lambda stream, place, kept, weight, bias, eps, dtype: _like_norm(stream, kept, dtype),
)
_add = _define(f"add_(Tensor(a!) stream, {_ADDED}) -> ()", lambda *given: None)
_add_norm = _define(
    f"add_norm_(Tensor(a!) stream, {_ADDED}, {_NORM}) -> (Tensor, Tensor, Tensor)",
    lambda stream, branch, gamma, scale, branch_place, place, kept, weight, bias, eps, dtype: _like_norm(
        stream, kept, dtype
    ),
)
# Sums: of the gradients of the norm's weight and bias, then of LayerScale and the branch's last bias.
_norm_backward = _define(
    f"norm_backward_(Tensor(a!) grad, {_NORMED}, int programs) -> Tensor",
    lambda grad, *given: _sums(grad, given[-1], 2),
)
_add_backward = _define(
    f"add_backward(Tensor grad, {_ADDED}, int programs) -> (Tensor, Tensor)",
    lambda grad, branch, *given: (torch.empty_like(branch), _sums(grad, given[-1], 2)),
)
_add_norm_backward = _define(
    f"add_norm_backward_(Tensor(a!) grad, {_ADDED}, {_NORMED}, int programs) -> (Tensor, Tensor)",
    lambda grad, branch, *given: (torch.empty_like(branch), _sums(grad, given[-1], 4)),
)
_gelu_backward = _define(
    "gelu_backward(Tensor out_grad, Tensor given, str approximate, int programs) -> (Tensor, Tensor)",
    lambda out_grad, given, approximate, programs: (torch.empty_like(given), _sums(given, programs)),
)
_merge_heads = _define(
    "merge_heads(Tensor query, Tensor key, Tensor value, int programs) -> (Tensor, Tensor)", _like_merged
)


# ------------------------------------------------------------------------------------------------------- the gradients
def _copy(stream: Tensor) -> Tensor:
    """A copy to write to; Inductor removes the copy where nothing else reads the original."""
    return stream.contiguous().clone()


class _NormOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stream: Tensor, place: Any, kept: int, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        stream = stream.contiguous()
        out, unit, deviation = _norm(stream, place, kept, weight, *rest)
        ctx.save_for_backward(unit, deviation, weight, place)
        return stream.view_as(stream), out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        unit, deviation, weight, place = ctx.saved_tensors
        grad = _copy(grad)
        weight_grad, bias_grad = _norm_backward(
            grad, out_grad.contiguous(), unit, deviation, weight, place, PROGRAMS
        ).sum(0)
        return grad, None, None, weight_grad, bias_grad, None, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stream: Tensor, branch: Tensor, last_bias: Tensor, *rest: Any) -> Tensor:
        stream, branch = _copy(stream), branch.contiguous()
        _add(stream, branch, *rest)
        ctx.save_for_backward(branch, *rest)
        ctx.last = last_bias.dtype
        return stream

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        branch, gamma, scale, place = ctx.saved_tensors
        grad = grad.contiguous()
        branch_grad, sums = _add_backward(grad, branch, gamma, scale, place, PROGRAMS)
        gamma_grad, last = sums.sum(0)
        return grad, branch_grad, last.to(ctx.last), None if gamma is None else gamma_grad, None, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, stream: Tensor, branch: Tensor, last_bias: Tensor, gamma: Any, scale: Tensor, branch_place: Any,
        place: Any, kept: int, weight: Tensor, *rest: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        stream, branch = _copy(stream), branch.contiguous()
        out, unit, deviation = _add_norm(stream, branch, gamma, scale, branch_place, place, kept, weight, *rest)
        ctx.save_for_backward(branch, gamma, scale, branch_place, unit, deviation, weight, place)
        ctx.last = last_bias.dtype
        return stream, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        branch, gamma, scale, branch_place, unit, deviation, weight, place = ctx.saved_tensors
        grad = _copy(grad)
        added, normed = (branch, gamma, scale, branch_place), (out_grad.contiguous(), unit, deviation, weight, place)
        branch_grad, sums = _add_norm_backward(grad, *added, *normed, PROGRAMS)
        weight_grad, bias_grad, gamma_grad, last = sums.sum(0)
        gamma_grad = None if gamma is None else gamma_grad
        return (
            grad, branch_grad, last.to(ctx.last), gamma_grad, None, None, None, None, weight_grad, bias_grad, None, None
        )  # fmt: skip


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, bias: Tensor, approximate: str) -> Tensor:
        ctx.save_for_backward(given.contiguous())
        ctx.bias, ctx.approximate = bias.dtype, approximate
        return F.gelu(given, approximate=approximate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        given_grad, sums = _gelu_backward(out_grad.contiguous(), *ctx.saved_tensors, ctx.approximate, STRIPES)
        return given_grad, sums.sum(0).to(ctx.bias), None


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, ...]:
        samples, tokens, width = qkv.shape
        ctx.bias = bias.dtype
        return qkv.view(samples, tokens, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        merged, sums = _merge_heads(*grads, STRIPES)
        return merged, sums.sum(0).to(ctx.bias), None
