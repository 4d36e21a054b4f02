"""Triton kernels for the operations of a transformer block besides matrix products and attention; and their launches.

Each kernel passes over memory once. A stream has B samples of N tokens of D channels, of which a branch keeps K
samples. `place`, int32 [B], holds each sample's place among the kept samples, in any order; places from K on are
dropped. Without a `place` (None) all samples are kept in their order. Each program leaves its sums over rows in
[programs, sums, D], and the caller adds these up. The order of all additions is fixed and there are no atomics, so the
same inputs give the same bits.

A launch is named after its operator in block_ops.py, and takes the operator's arguments followed by its results.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # rows of a tile, for programs that work on tiles
COLUMNS = 128
WARPS = 4


@triton.jit
def _find(place, sample, kept, USED: tl.constexpr, SUBSET: tl.constexpr):
    """The place of a sample among the kept samples, and whether the branch keeps the sample."""
    found = tl.cast(sample, tl.int32)
    if USED and SUBSET:
        found = tl.load(place + sample)
    return found, found < (kept if USED else 0)


@triton.jit
def _add_norm(
    stream, branch, gamma, scale, branch_place, branch_kept, weight, bias, norm_place, norm_kept, out, normed,
    deviation, tokens, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ADD: tl.constexpr, GAMMA: tl.constexpr, NORM: tl.constexpr, SUBSET: tl.constexpr,
):  # fmt: skip
    """One row of the stream: adds the branch's row to it (ADD), and writes its LayerNorm for the next branch (NORM)."""
    row = tl.program_id(0)
    sample = row // tokens
    token = row % tokens
    added_at, adds = _find(branch_place, sample, branch_kept, ADD, SUBSET)
    normed_at, norms = _find(norm_place, sample, norm_kept, NORM, SUBSET)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    here = stream + row.to(tl.int64) * WIDTH + columns
    x = tl.load(here, inside & (adds | norms), other=0.0)
    if ADD:
        mask = inside & adds
        y = tl.load(branch + (added_at * tokens + token).to(tl.int64) * WIDTH + columns, mask, other=0.0).to(tl.float32)
        if GAMMA:
            y *= tl.load(gamma + columns, inside, other=0.0).to(tl.float32)
        x += tl.load(scale + added_at, adds, other=0.0) * y
        tl.store(here, x, mask)
    if NORM:
        mask = inside & norms
        centred = tl.where(inside, x - tl.sum(x) / WIDTH, 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(centred * centred) / WIDTH + eps)
        unit = centred * inverse
        place = normed_at * tokens + token
        there = place.to(tl.int64) * WIDTH + columns
        w = tl.load(weight + columns, inside, other=0.0).to(tl.float32)
        b = tl.load(bias + columns, inside, other=0.0).to(tl.float32)
        tl.store(out + there, (unit * w + b).to(out.dtype.element_ty), mask)
        tl.store(normed + there, unit.to(normed.dtype.element_ty), mask)
        tl.store(deviation + place, inverse, norms)


@triton.jit
def _add_norm_backward(
    grad, branch, gamma, scale, branch_place, branch_kept, branch_grad, out_grad, normed, deviation, weight, norm_place,
    norm_kept, sums, rows, tokens, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ADD: tl.constexpr, GAMMA: tl.constexpr, NORM: tl.constexpr, SUBSET: tl.constexpr,
):  # fmt: skip
    """Adds the LayerNorm's gradient to the stream's gradient, and computes the branch's gradient from the sum.

    sums: of the gradients of the norm's weight and bias (NORM), of LayerScale and of the branch's last bias (ADD).
    """
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    weight_sum = tl.zeros([BLOCK], tl.float32)
    bias_sum = tl.zeros([BLOCK], tl.float32)
    gamma_sum = tl.zeros([BLOCK], tl.float32)
    last_sum = tl.zeros([BLOCK], tl.float32)
    if NORM:
        w = tl.load(weight + columns, inside, other=0.0).to(tl.float32)
    if GAMMA:
        layer_scale = tl.load(gamma + columns, inside, other=0.0).to(tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        sample = row // tokens
        token = row % tokens
        added_at, adds = _find(branch_place, sample, branch_kept, ADD, SUBSET)
        normed_at, norms = _find(norm_place, sample, norm_kept, NORM, SUBSET)
        here = grad + tl.cast(row, tl.int64) * WIDTH + columns
        g = tl.load(here, inside & (adds | norms), other=0.0)
        if NORM:
            mask = inside & norms
            place = normed_at * tokens + token
            there = place.to(tl.int64) * WIDTH + columns
            d = tl.load(out_grad + there, mask, other=0.0).to(tl.float32)
            unit = tl.load(normed + there, mask, other=0.0).to(tl.float32)
            inverse = tl.load(deviation + place, norms, other=0.0)
            weight_sum += d * unit
            bias_sum += d
            d *= w
            g += inverse * (d - tl.sum(d) / WIDTH - unit * (tl.sum(d * unit) / WIDTH))
            tl.store(here, g, mask)
        if ADD:
            mask = inside & adds
            there = (added_at * tokens + token).to(tl.int64) * WIDTH + columns
            g = tl.where(mask, g * tl.load(scale + added_at, adds, other=0.0), 0.0)
            if GAMMA:
                gamma_sum += g * tl.load(branch + there, mask, other=0.0).to(tl.float32)
                g *= layer_scale
            last_sum += g
            tl.store(branch_grad + there, g.to(branch_grad.dtype.element_ty), mask)
    into = sums + tl.program_id(0) * (2 * NORM + 2 * ADD) * WIDTH + columns
    if NORM:
        tl.store(into, weight_sum, inside)
        tl.store(into + WIDTH, bias_sum, inside)
    if ADD:
        tl.store(into + 2 * NORM * WIDTH, gamma_sum, inside)
        tl.store(into + (2 * NORM + 1) * WIDTH, last_sum, inside)


@triton.jit
def _gelu_backward(
    out_grad, given, given_grad, sums, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TANH: tl.constexpr
):
    """Programs (columns, rows): the gradient of GELU's input, and its sums over rows."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(tl.program_id(1) * ROWS, rows, tl.num_programs(1) * ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (columns < width)[None, :]
        here = row.to(tl.int64)[:, None] * width + columns[None, :]
        x = tl.load(given + here, mask, other=0.0).to(tl.float32)
        g = tl.load(out_grad + here, mask, other=0.0).to(tl.float32)
        if TANH:
            # 1 + tanh(z) is 2 sigmoid(2 z).
            below = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
            slope = below * (1.0 - below) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
        else:
            below = 0.5 + 0.5 * tl.math.erf(x * 0.7071067811865476)
            slope = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        g *= below + x * slope
        total += g
        tl.store(given_grad + here, g.to(given_grad.dtype.element_ty), mask)
    tl.store(sums + tl.program_id(1) * width + columns, tl.sum(total, 0), columns < width)


@triton.jit
def _merge_heads(
    query, key, value, merged, sums, rows, tokens,
    by_sample, by_token, by_head,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Programs (columns, rows, which of the three): [B, H, N, D / H] each -> [B, N, 3, D], and its sums over rows."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < WIDTH
    which = tl.program_id(2)
    source = query
    if which == 1:
        source = key
    elif which == 2:
        source = value
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(tl.program_id(1) * ROWS, rows, tl.num_programs(1) * ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        at = (row // tokens).to(tl.int64) * by_sample + (row % tokens) * by_token
        g = tl.load(source + at[:, None] + (columns // HEAD * by_head + columns % HEAD)[None, :], mask, other=0.0)
        total += g.to(tl.float32)
        tl.store(merged + (row.to(tl.int64) * 3 + which)[:, None] * WIDTH + columns[None, :], g, mask)
    tl.store(sums + (tl.program_id(1) * 3 + which) * WIDTH + columns, tl.sum(total, 0), inside)


def _add_norm_of(stream: Tensor, added: tuple[Any, ...] | None, normed: tuple[Any, ...] | None) -> None:
    samples, tokens, width = stream.shape
    branch, gamma, scale, branch_place = added or (None, None, (), None)
    place, kept, weight, bias, eps, _, out, unit, deviation = normed or (
        None,
        0,
        None,
        None,
        0.0,
        None,
        None,
        None,
        None,
    )
    _add_norm[(samples * tokens,)](
        stream, branch, gamma, scale if added else None, branch_place, len(scale), weight, bias, place, kept, out, unit,
        deviation, tokens, eps, **_options(width, added, normed, place if added is None else branch_place),
    )  # fmt: skip


def _add_norm_backward_of(
    grad: Tensor,
    added: tuple[Any, ...] | None,
    normed: tuple[Any, ...] | None,
    branch_grad: Tensor | None,
    sums: Tensor,
) -> None:
    samples, tokens, width = grad.shape
    branch, gamma, scale, branch_place = added or (None, None, (), None)
    out_grad, unit, deviation, weight, place = normed or (None, (), None, None, None)
    _add_norm_backward[(len(sums),)](
        grad, branch, gamma, scale if added else None, branch_place, len(scale), branch_grad, out_grad,
        unit if normed else None, deviation, weight, place, len(unit), sums, samples * tokens, tokens,
        **_options(width, added, normed, place if added is None else branch_place),
    )  # fmt: skip


def _options(width: int, added: Any, normed: Any, place: Tensor | None) -> dict[str, Any]:
    return {
        "WIDTH": width,
        "BLOCK": triton.next_power_of_2(width),
        "ADD": added is not None,
        "GAMMA": added is not None and added[1] is not None,
        "NORM": normed is not None,
        "SUBSET": place is not None,
        "num_warps": WARPS if width <= 1024 else 2 * WARPS,
    }


def norm(stream: Tensor, *rest: Any) -> None:
    _add_norm_of(stream, None, rest)


def add_(stream: Tensor, *added: Any) -> None:
    _add_norm_of(stream, added, None)


def add_norm_(stream: Tensor, *rest: Any) -> None:
    _add_norm_of(stream, rest[:4], rest[4:])


def norm_backward_(grad: Tensor, *rest: Any) -> None:
    _add_norm_backward_of(grad, None, rest[:5], None, rest[-1])


def add_backward(grad: Tensor, *rest: Any) -> None:
    _add_norm_backward_of(grad, rest[:4], None, *rest[-2:])


def add_norm_backward_(grad: Tensor, *rest: Any) -> None:
    _add_norm_backward_of(grad, rest[:4], rest[4:9], *rest[-2:])


def gelu_backward(
    out_grad: Tensor, given: Tensor, approximate: str, programs: int, given_grad: Tensor, sums: Tensor
) -> None:
    width = given.shape[-1]
    _gelu_backward[(triton.cdiv(width, COLUMNS), len(sums))](
        out_grad, given, given_grad, sums, given.numel() // width, width,
        ROWS=ROWS, COLUMNS=COLUMNS, TANH=approximate == "tanh", num_warps=WARPS,
    )  # fmt: skip


def merge_heads(query: Tensor, key: Tensor, value: Tensor, programs: int, merged: Tensor, sums: Tensor) -> None:
    samples, heads, tokens, head = query.shape
    width = heads * head
    if not query.stride() == key.stride() == value.stride() or query.stride(3) != 1:
        query, key, value = (each.contiguous() for each in (query, key, value))
    _merge_heads[(triton.cdiv(width, COLUMNS), len(sums), 3)](
        query, key, value, merged, sums, samples * tokens, tokens, query.stride(0), query.stride(2), query.stride(1),
        WIDTH=width, HEAD=head, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS,
    )  # fmt: skip
