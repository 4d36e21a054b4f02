"""Initial weights, distributed as in facebookresearch/deit, but drawn here, so that no release of torch changes them.

For example, `nn.init.trunc_normal_(std=0.02)` of torch 2.11 sometimes returns -2, which is 100 standard deviations.
"""

import hashlib
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deit_fast.runtime.philox import Stream, generator

TOKENS = ("cls_token", "dist_token", "pos_embed")
BOUND = 2.0
"""Largest absolute value of a weight from the truncated normal, as in the reference: not in standard deviations."""

Draws = Callable[[np.random.RandomState, int], NDArray[np.float64]]


def draw_weights(model: nn.Module, std: float, seed: int) -> None:
    """Draws the weights of linear layers, convolutions, tokens and positions, in place; other weights stay as they are.

    Linear layers, tokens and learned positions are from a normal distribution of standard deviation `std`, truncated at
    +-BOUND; biases of linear layers are zero. Weights and biases of convolutions are uniform within +-1 / sqrt(fan_in),
    torch's default. Norms and LayerScale are not drawn. Each tensor is a pure function of (seed, its name, its shape),
    the same on every machine and with every release of torch: another head or token changes no other weight. On the
    meta device nothing is drawn.
    """
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Linear):
            _fill(module.weight, f"{prefix}.weight", seed, partial(truncated_normal, std))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for name, weight in module.named_parameters(prefix, recurse=False):
                _fill(weight, name, seed, partial(_uniform, bound))
    for name, weight in model.named_parameters():
        if name in TOKENS:
            _fill(weight, name, seed, partial(truncated_normal, std))


def truncated_normal(std: float, random: np.random.RandomState, count: int) -> NDArray[np.float64]:
    """Numbers [count] from a normal distribution of mean 0 and `std`, redrawn while they are outside +-BOUND."""
    found = np.empty(0)
    while len(found) < count:
        missing = count - len(found)
        if std <= BOUND:
            drawn = std * random.standard_normal(missing)
            drawn = drawn[np.abs(drawn) <= BOUND]
        else:  # draws of a wide normal mostly lie outside, so uniform draws are accepted by its density
            drawn = BOUND * (2 * random.random_sample(missing) - 1)
            drawn = drawn[random.random_sample(missing) < np.exp(-((drawn / std) ** 2) / 2)]
        found = np.concatenate([found, drawn])
    return found


def _uniform(bound: float, random: np.random.RandomState, count: int) -> NDArray[np.float64]:
    return bound * (2 * random.random_sample(count) - 1)


@torch.no_grad()
def _fill(weight: Tensor, name: str, seed: int, draws: Draws) -> None:
    """Fills a weight [...] with draws keyed by seed and name, in the order of its elements' indices."""
    if weight.is_meta:
        return
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    drawn = draws(generator(seed, Stream.WEIGHTS, key), weight.numel())
    weight.copy_(torch.from_numpy(drawn.astype(np.float32)).view(weight.shape))
