"""Bytes that each of our own kernels reads and writes, from its operator's arguments (deit_fast/models/block_ops.py).

tests/benchmarks/test_traffic.py runs the kernels in Triton's interpreter and compares the counts.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def _bytes(*tensors: Tensor | None) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors if tensor is not None)


def _rows(stream: Tensor, *branches: tuple[int, Tensor | None]) -> float:
    """Bytes of the samples in the stream [B, N, D] that at least one branch keeps. branches: (samples kept, places).

    Draws are independent, so another branch keeps some of the samples that one branch drops.
    """
    dropped = 1.0
    for kept, place in branches:
        dropped *= 1 - kept / len(stream) if place is not None else 0
    return (1 - dropped) * _bytes(stream)


def _norm(results: Any, stream: Tensor, kept: int, place: Tensor | None, **given: Any) -> float:
    return _rows(stream, (kept, place)) + _bytes(*results, place, given["weight"], given["bias"])


def _add(results: Any, stream: Tensor, branch: Tensor, branch_place: Tensor | None, **given: Any) -> float:
    rows = _rows(stream, (len(branch), branch_place))
    return 2 * rows + _bytes(branch, branch_place, given["gamma"], given["scale"])


def _add_norm(results: Any, stream: Tensor, branch: Tensor, kept: int, **given: Any) -> float:
    added, following = (len(branch), given["branch_place"]), (kept, given["place"])
    beside = [given[name] for name in ("branch_place", "place", "gamma", "scale", "weight", "bias")]
    return _rows(stream, added, following) + _rows(stream, added) + _bytes(branch, *results, *beside)


def _norm_backward(results: Any, grad: Tensor, unit: Tensor, place: Tensor | None, **given: Any) -> float:
    beside = [given[name] for name in ("out_grad", "deviation", "weight")]
    return 2 * _rows(grad, (len(unit), place)) + _bytes(results, unit, place, *beside)


def _add_backward(results: Any, grad: Tensor, branch: Tensor, branch_place: Tensor | None, **given: Any) -> float:
    read = branch if given["gamma"] is not None else None
    return _rows(grad, (len(branch), branch_place)) + _bytes(
        *results, read, branch_place, given["gamma"], given["scale"]
    )


def _add_norm_backward(results: Any, grad: Tensor, branch: Tensor, unit: Tensor, **given: Any) -> float:
    added, normed = (len(branch), given["branch_place"]), (len(unit), given["place"])
    beside = [given[name] for name in ("branch_place", "place", "gamma", "scale", "out_grad", "deviation", "weight")]
    read = branch if given["gamma"] is not None else None
    return _rows(grad, added, normed) + _rows(grad, normed) + _bytes(*results, read, unit, *beside)


def _all(results: Any, **given: Any) -> float:
    return _bytes(*results, *(value for value in given.values() if isinstance(value, Tensor)))


TRAFFIC: dict[str, Callable[..., float]] = {
    "norm": _norm,
    "add_": _add,
    "add_norm_": _add_norm,
    "norm_backward_": _norm_backward,
    "add_backward": _add_backward,
    "add_norm_backward_": _add_norm_backward,
    "gelu_backward": _all,
    "merge_heads": _all,
}
"""For each operator's name: a function of its results and its arguments, by their names, that returns bytes."""
