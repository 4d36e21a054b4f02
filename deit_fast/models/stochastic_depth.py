"""Stochastic depth that skips work: a residual branch runs on a random subset of the batch instead of being masked.

Stochastic depth is Huang et al. 2016, arXiv:1603.09382. timm and the reference compute every branch for every sample
and multiply the dropped ones by zero; here those are never computed, an idea of DINOv2 (Oquab et al. 2023,
arXiv:2304.07193, section 5). At rate p it saves p of the branches' FLOPs and activation memory, forward and backward.
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
    """Samples of `batch` that a branch runs on at drop rate `rate`: round(batch * (1 - rate)), at least one.

    The rate in effect is therefore 1 - keep / batch, within 1 / (2 * batch) of `rate` (but for the one that is always
    kept); where batch * rate < 0.5 it is zero and the branch is dense. The scale batch / keep follows the rate in
    effect, so the expectation is exact at every batch size.
    """
    return max(1, round(batch * (1 - rate)))


def draw_rows(batch: int, keep: int, device: torch.device) -> Tensor:
    """`keep` different indices below `batch`, uniform over all subsets; int64 [keep] on the device.

    A sort of uniform numbers from the default generator: no host synchronisation and static shapes, so the draw can be
    compiled and captured in a CUDA graph, and torch.manual_seed decides it.
    """
    return torch.rand(batch, device=device).argsort()[:keep]


class _Fork(torch.autograd.Function):
    """x [B, ...] and rows [K] -> x itself and x[rows]: index_select with a cheaper backward.

    Autograd would write the gradient of index_select into a zeroed tensor of x's size and add that to the gradient of
    the residual stream: three passes over the whole batch where the rows alone need adding.
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

    Exactly `keep_count(B, rate)` samples, drawn anew for each branch and call, get B / keep * branch(their rows); the
    others pass unchanged and cost nothing. `branch` takes [keep, ...], returns that shape and must not mix samples. At
    rate 0 this is x + the sum, bit for bit.

    Against Bernoulli drop path (each sample kept with probability 1 - rate, scaled by 1 / (1 - rate)) means of outputs
    and gradients are equal. So is the variance of one sample's output, p / (1 - p) * branch(x)^2 with p = 1 - keep / B;
    but a batch is drawn without replacement (covariance -p / ((1 - p) * (B - 1)) of two samples), so sums vary less.
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
    # The indices are distinct, so each element is added to once at most: index_add is deterministic although CUDA does
    # it with atomics. index_copy would read the rows once more, and its backward copies and fills the whole batch.
    # Nothing else reads the stream, so inductor adds in place: compiled, the skipped samples cost no memory traffic.
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

    The rates are those of timm's drop_path1 and drop_path2, and the state dict is timm's. In evaluation, and at rate 0,
    it is timm's own forward.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens [B, N, D] -> [B, N, D]; attention masks in evaluation only, as a mask may differ between samples."""
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
    """The rate and the layers of a branch that ends with its stochastic depth."""
    *layers, drop_path = sequence

    def branch(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return rate_of(drop_path), branch


def rate_of(drop_path: nn.Module) -> float:
    """The rate of timm's DropPath, or of what stands in its place where there is none."""
    return drop_path.drop_prob if isinstance(drop_path, DropPath) else 0.0
