"""Activation checkpointing: the backward pass recomputes activations instead of keeping them in memory."""

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from deit_fast.models.build import ImageModel
from deit_fast.recipe.sections import Run

_ATEN = torch.ops.aten
# These are costly to recompute: matrix products, convolutions and attention. Other operations are one pass over memory.
_KEPT = [
    _ATEN.mm.default,
    _ATEN.addmm.default,
    _ATEN.bmm.default,
    _ATEN.baddbmm.default,
    _ATEN.convolution.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
]


def recompute(model: ImageModel, run: Run) -> None:
    """Sets up activation checkpointing in a model, in place, as run.grad_checkpointing says.

    Random draws, such as those of stochastic depth, are the same in the forward pass and in its repetition.
    """
    if run.grad_checkpointing == "selective":
        contexts = partial(create_selective_checkpoint_contexts, _KEPT)
        for block in model.blocks:
            # Only the forward is wrapped, so that the hooks with which FSDP gathers the block's weights run outside.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    elif run.grad_checkpointing:
        model.set_grad_checkpointing()
