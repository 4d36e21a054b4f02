"""Stochastic depth that skips work: a residual branch runs on a random subset of the batch instead of being masked.

Stochastic depth is Huang et al. 2016, arXiv:1603.09382. timm and the reference compute every branch for every sample
and multiply the dropped samples by zero. Here dropped samples are not computed, an idea of DINOv2 (Oquab et al. 2023,
arXiv:2304.07193, section 5). At rate p this saves p of the branches' FLOPs and activation memory, forward and backward.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from timm.layers import DropPath
from timm.models.vision_transformer import Block, ParallelThingsBlock
from torch import Tensor, nn

from deit_fast.models.block import can_fuse, fused_forward
from deit_fast.models.block_ops import Kept
from deit_fast.recipe.sections import Model


def keep_count(batch: int, rate: float) -> int:
    """Number of samples of `batch` on which a branch runs at drop rate `rate`: round(batch * (1 - rate)), at least one.

    The rate in effect is therefore 1 - keep / batch. It differs from `rate` by at most 1 / (2 * batch), except where
    the one sample that is always kept matters. If batch * rate < 0.5, the rate in effect is zero and the branch runs on
    the whole batch. The scale batch / keep follows the rate in effect, so the expectation is exact at every batch size.
    """
    return max(1, round(batch * (1 - rate)))


def draw_rows(batch: int, keep: int, device: torch.device) -> Tensor:
    """`keep` different indices below `batch`, uniform over all subsets; int64 [keep] on the device.

    The draw sorts uniform numbers of the default generator. Shapes are static and the host does not wait, so the draw
    can be compiled and captured in a CUDA graph. torch.manual_seed decides the outcome.
    """
    return torch.rand(batch, device=device).argsort()[:keep]


class _Fork(torch.autograd.Function):
    """x [B, ...] and rows [K] -> x itself and x[rows]: index_select with a cheaper backward.

    The gradient of index_select would be written into a zeroed tensor of x's size, which is then added to the residual
    stream's gradient: three passes over the whole batch. The backward here adds to the selected rows only.
    """

    @staticmethod
    def forward(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return x.view_as(x), x.index_select(0, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad_stream: Tensor, grad_kept: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grad_stream.index_add(0, rows, grad_kept), None


def residual_subset(x: Tensor, rate: float, *branches: Callable[[Tensor], Tensor]) -> Tensor:
    """x + the sum of branch(x), with each branch on a random subset of samples of its own: x [B, ...] -> [B, ...].

    Exactly `keep_count(B, rate)` samples, drawn anew for each branch and call, get B / keep * branch(their rows). The
    other samples pass unchanged and cost nothing. `branch` takes [keep, ...], returns the same shape and must not mix
    samples. At rate 0 the result is x + the sum, bit for bit.

    Compare Bernoulli drop path, which keeps each sample with probability 1 - rate and scales it by 1 / (1 - rate).
    Means of outputs and gradients are equal. So is the variance of one sample's output, p / (1 - p) * branch(x)^2 with
    p = 1 - keep / B. Sums over a batch vary less, because the samples are drawn without replacement: two samples have
    covariance -p / ((1 - p) * (B - 1)).
    """
    batch = x.shape[0]
    keep = keep_count(batch, rate)
    if keep == batch:
        return x + functools.reduce(torch.add, [branch(x) for branch in branches])
    drawn = []
    for branch in branches:
        rows = draw_rows(batch, keep, x.device)
        x, kept = _Fork.apply(x, rows)
        drawn.append((branch, rows, kept))
    # The indices are distinct, so each element is added to at most once, and index_add is deterministic although CUDA
    # uses atomics. index_copy would read the rows once more, and its backward copies and fills the whole batch. Nothing
    # else reads the stream, so Inductor adds in place: in compiled code the skipped samples cause no memory traffic.
    for branch, rows, kept in drawn:
        x = x.index_add(0, rows, branch(kept).to(x.dtype), alpha=batch / keep)
    return x


def drop_path_rates(section: Model, depth: int) -> list[float]:
    """Stochastic depth's rate in each of `depth` blocks, by section.drop_path and section.drop_path_decay."""
    if section.drop_path_decay == "constant" or depth == 1:
        return [section.drop_path] * depth
    return [section.drop_path * block / (depth - 1) for block in range(depth)]


def keep_subset(drop_path: nn.Module, x: Tensor) -> Kept:
    """For the kernels: the samples that `residual_subset` would draw for the branch, and their scale."""
    batch = x.shape[0]
    keep = keep_count(batch, rate_of(drop_path))
    if keep == batch:
        return Kept(x.new_ones(batch), None)
    places = draw_rows(batch, batch, x.device).argsort().to(torch.int32)
    return Kept(x.new_full((keep,), batch / keep), places)


class SubsetBlock(Block):
    """timm's pre-norm transformer block with `residual_subset` around attention and MLP, drawn independently.

    The rates are those of timm's drop_path1 and drop_path2, and the state dict is timm's. timm's own forward runs in
    evaluation and at rate 0.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens [B, N, D] -> [B, N, D].

        Attention masks are for evaluation only, as a mask may differ between samples.
        """
        if not self.training:
            return super().forward(x, *args, **kwargs)
        if args or kwargs:
            raise ValueError("attention masks with subset stochastic depth in training: expected none")
        if can_fuse(self, x):
            return fused_forward(self, x, keep_subset)
        x = residual_subset(x, rate_of(self.drop_path1), lambda kept: self.ls1(self.attn(self.norm1(kept))))
        return residual_subset(x, rate_of(self.drop_path2), lambda kept: self.ls2(self.mlp(self.norm2(kept))))


class SubsetParallelBlock(ParallelThingsBlock):
    """timm's block of parallel branches with `residual_subset`: each branch draws its own samples."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens [B, N, D] -> [B, N, D]; attention masks in evaluation only."""
        if not self.training:
            return super().forward(x, *args, **kwargs)
        if args or kwargs:
            raise ValueError("attention masks with subset stochastic depth in training: expected none")
        for parallel in (self.attns, self.ffns):
            rates, branches = zip(*map(_split, cast(Any, parallel)), strict=True)
            x = residual_subset(x, rates[0], *branches)
        return x


def _split(sequence: Iterable[nn.Module]) -> tuple[float, Callable[[Tensor], Tensor]]:
    """The rate and the layers of a branch whose last module is its stochastic depth."""
    *layers, drop_path = sequence

    def branch(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return rate_of(drop_path), branch


def rate_of(drop_path: nn.Module) -> float:
    """The rate of timm's DropPath, or 0 for the module that takes its place at rate 0."""
    return drop_path.drop_prob if isinstance(drop_path, DropPath) else 0.0
