"""The cost of computing a model: its weights, and the FLOPs of matrix products and convolutions.

Allocates no memory.
"""

from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from deit_fast.models.build import build_model
from deit_fast.recipe.sections import Model


@cache
def count_parameters(section: Model) -> int:
    """The number of elements of a model's weights."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(section).parameters())


def forward_macs(section: Model) -> float:
    """Multiply-accumulates of one image's forward pass, of matrix products and convolutions; no memory is used."""
    return _count_flops(section, 1, backward=False) / 2


def training_flops(section: Model, batch: int) -> float:
    """FLOPs per image that a forward and a backward pass execute, without the samples that stochastic depth skips."""
    return _count_flops(section, batch, backward=True) / batch


def _convolution_backward(grad: list[int], images: list[int], weight: list[int], *others: Any, **_: Any) -> int:
    """FLOPs of a convolution's gradients, with its groups counted.

    torch's own count ignores groups, and PatchConvNet's convolutions have groups of one channel.
    """
    transposed, output_mask = others[4], others[7]
    return conv_flop_count(images, weight, grad, transposed) * sum(output_mask[:2])


_CONVOLUTION = {torch.ops.aten.convolution_backward: _convolution_backward}


@cache
def _count_flops(section: Model, batch: int, backward: bool) -> float:
    with torch.device("meta"):
        model = build_model(section).train(backward)
        images = torch.empty(batch, 3, section.image_size, section.image_size)
        with FlopCounterMode(display=False, custom_mapping=_CONVOLUTION) as counter:
            outputs = model(images)  # of both heads, in the training of a distilled model
            if backward:
                sum(each.sum() for each in (outputs if isinstance(outputs, tuple) else [outputs])).backward()
    return float(counter.get_total_flops())
