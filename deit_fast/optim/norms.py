"""The norm of all gradients, also where each process holds a part of every tensor."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

AddUp = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes that hold the parts, in place, and returns it."""


def global_norm(tensors: Sequence[Tensor], add_up: AddUp | None = None) -> Tensor:
    """The norm [] of all elements of `tensors`; with `add_up`, of those of all processes."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
    return norm if add_up is None else add_up(norm.square()).sqrt()
