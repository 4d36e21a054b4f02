"""LAMB for all tensors of a model in a few kernel launches: two passes over memory after the gradient norm's.

All tensors are cut into chunks of CHUNK elements, and each program works on one chunk. Tensors whose memory allows
16-byte accesses come first. Other tensors, such as a bias of 10 classes, have launches of their own. The table gives
bytes per parameter, in fp32 except where bf16 is named:

    _grad_norm  reads g                                                          4
    _clip       one program per group: norm, clip factor, step, bias correction  -
    _moments    reads p g m v, writes m v; norms of p and of the update u       24
    _add_up     one program per tensor: |p|^2 and |u|^2                          -
    _apply      reads p m v, computes u again, writes p                         16
                reads and writes the moving average                              8
    with a bf16 copy of the weights: it is written by _apply                     2
                its gradient is bf16, which _grad_norm and _moments read        -4

Sums are kept per chunk and added up in a fixed order, never by atomics: the same inputs give the same bits. Every
number that changes from step to step (learning rate, step count, clip factor, whether to skip) is in device memory. The
host therefore waits for nothing, nothing recompiles, and a CUDA graph can hold the step. If processes hold parts of
every tensor, the sums of _grad_norm and _add_up are summed over the processes.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from deit_fast.optim.base import AddUp
from deit_fast.optim.device_tables import DeviceTables
from deit_fast.optim.lamb import TensorGroup

CHUNK = 4096
WARPS = 8  # with CHUNK, four 16-byte accesses per thread and tensor

# Columns of the pointer tables: param, grad, exp_avg, exp_avg_sq, average, copy; 0 means none.
POINTERS = tl.constexpr(6)
# Columns of the table of constants: 1 - beta1, 1 - beta2, log beta1, log beta2, eps, weight decay; float64.
CONSTANTS = tl.constexpr(6)
# Columns of the table of scalars: clip factor, 1 / (1 - beta1^step), 1 / (1 - beta2^step), lr.
SCALARS = tl.constexpr(4)


@triton.jit
def _locate(chunk, chunk_tensor, first_chunk, sizes, CHUNK: tl.constexpr, ALIGNED: tl.constexpr):
    """The tensor of a chunk, the chunk's first element, and a mask of the elements that exist."""
    tensor = tl.load(chunk_tensor + chunk)
    start = (chunk - tl.load(first_chunk + tensor)).to(tl.int64) * CHUNK
    left = tl.minimum(tl.load(sizes + tensor) - start, CHUNK).to(tl.int32)
    if ALIGNED:  # without this hint the mask would split 16-byte accesses
        left = tl.multiple_of(left, ALIGNED)
    return tensor, start, tl.arange(0, CHUNK) < left


@triton.jit
def _base(pointers, tensor, column: tl.constexpr, start, ALIGNED: tl.constexpr, dtype: tl.constexpr = tl.float32):
    """Address of element `start` of one of a tensor's storages.

    ALIGNED: the length is a multiple of this number of elements and all storages start at multiples of 16 bytes; else
    0.
    """
    pointer = tl.load(pointers + tensor * POINTERS + column).to(tl.pointer_type(dtype))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start


@triton.jit
def _gradient(pointers, tensor, start, mask, CHUNK: tl.constexpr, ALIGNED: tl.constexpr, COPIES: tl.constexpr):
    """A chunk of the gradient in fp32; in memory, the gradient of a tensor with a copy is bf16."""
    lanes = tl.arange(0, CHUNK)
    if COPIES and tl.load(pointers + tensor * POINTERS + 5) != 0:
        g = tl.load(_base(pointers, tensor, 1, start, ALIGNED, tl.bfloat16) + lanes, mask, other=0.0).to(tl.float32)
    else:
        g = tl.load(_base(pointers, tensor, 1, start, ALIGNED) + lanes, mask, other=0.0)
    return g


@triton.jit
def _direction(p, m, v, scalars, constants, group):
    """The update before trust ratio and learning rate."""
    correct1 = tl.load(scalars + group * SCALARS + 1)
    correct2 = tl.load(scalars + group * SCALARS + 2)
    eps = tl.load(constants + group * CONSTANTS + 4).to(tl.float32)
    weight_decay = tl.load(constants + group * CONSTANTS + 5).to(tl.float32)
    return m * correct1 / (tl.sqrt(v * correct2) + eps) + weight_decay * p


@triton.jit(do_not_specialize=["begin"])
def _grad_norm(
    pointers, chunk_tensor, first_chunk, sizes, begin, partials,
    CHUNK: tl.constexpr, ALIGNED: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    chunk = begin + tl.program_id(0)
    tensor, start, mask = _locate(chunk, chunk_tensor, first_chunk, sizes, CHUNK, ALIGNED)
    g = _gradient(pointers, tensor, start, mask, CHUNK, ALIGNED, COPIES)
    tl.store(partials + chunk, tl.sum(g * g))


@triton.jit(do_not_specialize=["chunks"])
def _clip(partials, chunks, group_pointers, constants, scalars, result, max_norm, BLOCK: tl.constexpr):
    """Computes scalars [groups, SCALARS] of this step; result [2]: the gradient norm, and 1 where it is not finite."""
    group = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, chunks, BLOCK):
        squares += tl.load(partials + start + lanes, start + lanes < chunks, other=0.0)
    norm = tl.sqrt(tl.sum(squares))
    finite = norm < float("inf")  # false for NaN
    if group == 0:
        tl.store(result, norm)
        tl.store(result + 1, tl.where(finite, 0.0, 1.0))
    lr_pointer = tl.load(group_pointers + group * 2).to(tl.pointer_type(tl.float32))
    step_pointer = tl.load(group_pointers + group * 2 + 1).to(tl.pointer_type(tl.float32))
    step = tl.load(step_pointer) + tl.where(finite, 1.0, 0.0)
    tl.store(step_pointer, step)
    # float64, because in fp32 1 - 0.999 has a relative error of 5e-5.
    log1 = tl.load(constants + group * CONSTANTS + 2)
    log2 = tl.load(constants + group * CONSTANTS + 3)
    out = scalars + group * SCALARS
    tl.store(out, max_norm / tl.maximum(norm, max_norm))
    tl.store(out + 1, (1.0 / (1.0 - tl.exp(log1 * step.to(tl.float64)))).to(tl.float32))
    tl.store(out + 2, (1.0 / (1.0 - tl.exp(log2 * step.to(tl.float64)))).to(tl.float32))
    tl.store(out + 3, tl.load(lr_pointer))


@triton.jit(do_not_specialize=["begin"])
def _moments(
    pointers, chunk_tensor, first_chunk, sizes, begin, tensor_group, constants, scalars, result, partials,
    CHUNK: tl.constexpr, ALIGNED: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    if tl.load(result + 1) != 0:
        return
    # Chunks are visited backwards, because the gradients that the norm's pass read last are still in the L2 cache.
    chunk = begin + tl.num_programs(0) - 1 - tl.program_id(0)
    tensor, start, mask = _locate(chunk, chunk_tensor, first_chunk, sizes, CHUNK, ALIGNED)
    lanes = tl.arange(0, CHUNK)
    m_pointers = _base(pointers, tensor, 2, start, ALIGNED) + lanes
    v_pointers = _base(pointers, tensor, 3, start, ALIGNED) + lanes
    p = tl.load(_base(pointers, tensor, 0, start, ALIGNED) + lanes, mask, other=0.0)
    g = _gradient(pointers, tensor, start, mask, CHUNK, ALIGNED, COPIES)
    m = tl.load(m_pointers, mask, other=0.0)
    v = tl.load(v_pointers, mask, other=0.0)
    group = tl.load(tensor_group + tensor)
    g *= tl.load(scalars + group * SCALARS)
    m += tl.load(constants + group * CONSTANTS).to(tl.float32) * (g - m)
    v += tl.load(constants + group * CONSTANTS + 1).to(tl.float32) * (g * g - v)
    tl.store(m_pointers, m, mask)
    tl.store(v_pointers, v, mask)
    u = tl.where(mask, _direction(p, m, v, scalars, constants, group), 0.0)
    tl.store(partials + 2 * chunk, tl.sum(p * p))
    tl.store(partials + 2 * chunk + 1, tl.sum(u * u))


@triton.jit
def _add_up(first_chunk, sizes, partials, squares, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    tensor = tl.program_id(0)
    first = tl.load(first_chunk + tensor)
    end = first + tl.cdiv(tl.load(sizes + tensor), CHUNK).to(tl.int32)
    p_squares = tl.zeros([BLOCK], tl.float32)
    u_squares = tl.zeros([BLOCK], tl.float32)
    for start in range(first, end, BLOCK):
        chunks = start + tl.arange(0, BLOCK)
        p_squares += tl.load(partials + 2 * chunks, chunks < end, other=0.0)
        u_squares += tl.load(partials + 2 * chunks + 1, chunks < end, other=0.0)
    tl.store(squares + 2 * tensor, tl.sum(p_squares))
    tl.store(squares + 2 * tensor + 1, tl.sum(u_squares))


@triton.jit
def _trust_ratio(squares, constants, tensor, group):
    """|p| / |u|, or 1 where either norm is 0 and without weight decay."""
    p_norm = tl.sqrt(tl.load(squares + 2 * tensor))
    u_norm = tl.sqrt(tl.load(squares + 2 * tensor + 1))
    decays = tl.load(constants + group * CONSTANTS + 5) != 0
    adapts = decays & (p_norm > 0) & (u_norm > 0)
    return tl.where(adapts, p_norm / tl.where(adapts, u_norm, 1.0), 1.0)


@triton.jit(do_not_specialize=["begin"])
def _apply(
    pointers, chunk_tensor, first_chunk, sizes, begin, tensor_group, constants, scalars, result, squares, average_gain,
    CHUNK: tl.constexpr, ALIGNED: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    if tl.load(result + 1) != 0:
        return
    # Chunks are visited forwards again, because _moments went backwards and ended at the first chunks.
    tensor, start, mask = _locate(begin + tl.program_id(0), chunk_tensor, first_chunk, sizes, CHUNK, ALIGNED)
    lanes = tl.arange(0, CHUNK)
    p_pointers = _base(pointers, tensor, 0, start, ALIGNED) + lanes
    p = tl.load(p_pointers, mask, other=0.0)
    m = tl.load(_base(pointers, tensor, 2, start, ALIGNED) + lanes, mask, other=0.0)
    v = tl.load(_base(pointers, tensor, 3, start, ALIGNED) + lanes, mask, other=0.0)
    group = tl.load(tensor_group + tensor)
    scale = tl.load(scalars + group * SCALARS + 3) * _trust_ratio(squares, constants, tensor, group)
    p -= scale * _direction(p, m, v, scalars, constants, group)
    tl.store(p_pointers, p, mask)
    if COPIES and tl.load(pointers + tensor * POINTERS + 5) != 0:
        tl.store(_base(pointers, tensor, 5, start, ALIGNED, tl.bfloat16) + lanes, p.to(tl.bfloat16), mask)
    if tl.load(pointers + tensor * POINTERS + 4) != 0:
        average_pointers = _base(pointers, tensor, 4, start, ALIGNED) + lanes
        average = tl.load(average_pointers, mask, other=0.0)
        tl.store(average_pointers, average + average_gain * (p - average), mask)


class LambKernels:
    """The kernel launches of one optimizer; its tables are rebuilt only when tensors or constants change."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda" and not triton.knobs.runtime.interpret:
            raise ValueError(f"Lamb: fused=True with parameters on {device}: expected a CUDA device")
        self.result = torch.zeros(2, device=device)
        self._tables = DeviceTables(device)

    def step(
        self,
        groups: Sequence[TensorGroup],
        max_grad_norm: float | None,
        average_decay: float,
        add_up: AddUp | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step of all groups, in place; returns the gradient norm [] and whether the step was skipped [], 1 or 0.

        add_up: as in Lamb.
        """
        copies = any(copy is not None for group in groups for copy in group.copies)
        sizes = [param.numel() for group in groups for param in group.params]
        rows = [
            [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
            for group in groups
            for tensors in zip(*group[:6], strict=True)
        ]
        widths = [_width(size, row, copies) for size, row in zip(sizes, rows, strict=True)]
        # Tensors keep their numbers, which are equal in all processes; only their chunks are sorted by access width.
        order = sorted(range(len(sizes)), key=lambda number: -widths[number])
        bounds = [0, *itertools.accumulate(-(-sizes[number] // CHUNK) for number in order)]
        first_chunk = [first for _, first in sorted(zip(order, bounds, strict=False))]
        chunks = bounds[-1]
        # Each table has the name of its content; the comments at the top describe the columns.
        table = self._tables.table
        pointers = table("pointers", list(itertools.chain(*rows)), torch.int64)
        group_pointers = table(
            "group_pointers", [t.data_ptr() for group in groups for t in (group.lr, group.step)], torch.int64
        )
        constants = table("constants", [c for group in groups for c in _constants(group)], torch.float64)
        layout = (
            self._tables.chunk_tensor(bounds, order),
            table("first_chunk", first_chunk, torch.int32),
            table("sizes", sizes, torch.int64),
        )
        owners = [owner for owner, group in enumerate(groups) for _ in group.params]
        tensor_group = table("tensor_group", owners, torch.int32)
        partials, squares, scalars = self._tables.scratch((2 * chunks, 2 * len(sizes), len(groups) * SCALARS.value))
        self._tables.keep_for_graph(groups)

        launches = []  # for each width: its first chunk, its number of chunks, and constants
        for width in sorted(set(widths), reverse=True):
            places = [place for place, number in enumerate(order) if widths[number] == width]
            begin, end = bounds[places[0]], bounds[places[-1] + 1]
            if end > begin:
                options = {"CHUNK": CHUNK, "ALIGNED": width, "COPIES": copies, "num_warps": WARPS}
                launches.append((begin, end - begin, options))
        max_norm = 3e38 if max_grad_norm is None else float(max_grad_norm)
        for begin, count, options in launches:
            _grad_norm[(count,)](pointers, *layout, begin, partials, **options)
        grad_squares, parts = partials, chunks
        if add_up is not None:
            grad_squares, parts = add_up(partials[:chunks].sum()), 1
        _clip[(len(groups),)](
            grad_squares, parts, group_pointers, constants, scalars, self.result, max_norm, BLOCK=4096, num_warps=WARPS
        )
        for begin, count, options in reversed(launches):
            _moments[(count,)](
                pointers, *layout, begin, tensor_group, constants, scalars, self.result, partials, **options
            )
        _add_up[(len(sizes),)](*layout[1:], partials, squares, CHUNK=CHUNK, BLOCK=1024)
        if add_up is not None:
            add_up(squares)
        for begin, count, options in launches:
            _apply[(count,)](
                pointers, *layout, begin, tensor_group, constants, scalars, self.result, squares, 1.0 - average_decay,
                **options,
            )  # fmt: skip
        return self.result[0], self.result[1]


def _constants(group: TensorGroup) -> list[float]:
    beta1, beta2 = group.betas
    logs = [math.log(beta or 5e-324) for beta in group.betas]
    return [1.0 - beta1, 1.0 - beta2, *logs, group.eps, group.weight_decay]


def _width(size: int, row: list[int], copies: bool) -> int:
    """Elements per access of a tensor: 8 (with copies) or 4, the first to divide `size`; 0 if none or unaligned."""
    if any(address % 16 for address in row):
        return 0
    return next((width for width in ((8, 4) if copies else (4,)) if size % width == 0), 0)
