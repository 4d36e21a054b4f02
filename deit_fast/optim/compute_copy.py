"""A copy of a model for computing, with large weights in bf16, so that autocast rounds no weights in each pass."""

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def copy_to_compute(model: M) -> tuple[M, dict[Tensor, nn.Parameter]]:
    """A copy of `model`, and its bf16 parameter for each weight and bias of the model's Linear and Conv2d layers.

    A weight, fp32 of any shape [...], has a bf16 parameter of the same shape in the copy. Autocast would round these
    weights to bf16, so the copy's outputs have the same bits. All other parameters, and the running statistics, are the
    model's own tensors. `write_copies` updates the copy after weights were loaded.
    """
    copies: dict[Tensor, nn.Parameter] = {
        weight: nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=weight.requires_grad)
        for layer in model.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        for weight in layer.parameters(recurse=False)
    }
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): copies.get(tensor, tensor) for tensor in shared}), copies


@torch.no_grad()
def write_copies(copies: Mapping[Tensor, Tensor]) -> None:
    """Rounds every weight, fp32 of any shape [...], to its bf16 copy of the same shape, in place."""
    for weight, rounded in copies.items():
        rounded.copy_(weight)
