"""Initial weights: those of all models of facebookresearch/deit, drawn here, so that no release of torch moves them.

On torch 2.11, for one, `nn.init.trunc_normal_(std=0.02)` draws a -2 now and then, which is 100 standard deviations.
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
"""Largest size of a weight from the truncated normal, the reference's: not in standard deviations."""

Draws = Callable[[np.random.RandomState, int], NDArray[np.float64]]


def draw_weights(model: nn.Module, std: float, seed: int) -> None:
    """Draws the weights of linear layers, convolutions, tokens and positions, in place; others stay as they are.

    Linear layers, tokens and learned positions are from a normal of `std` cut at +-BOUND, their biases zero. Weights
    and biases of convolutions are torch's, uniform within +-1 / sqrt(inputs of an output). Norms and LayerScale are not
    drawn. Each tensor is a pure function of (seed, its name, its shape), the same on every machine and for every torch:
    another head or token changes no other weight. On the meta device nothing is drawn.
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
    """Numbers [count] from a normal of mean 0 and `std` within +-BOUND: what is outside is drawn again."""
    found = np.empty(0)
    while len(found) < count:
        missing = count - len(found)
        if std <= BOUND:
            drawn = std * random.standard_normal(missing)
            drawn = drawn[np.abs(drawn) <= BOUND]
        else:  # most of a wide normal would lie outside: so even numbers, taken as often as the normal is high there
            drawn = BOUND * (2 * random.random_sample(missing) - 1)
            drawn = drawn[random.random_sample(missing) < np.exp(-((drawn / std) ** 2) / 2)]
        found = np.concatenate([found, drawn])
    return found


def _uniform(bound: float, random: np.random.RandomState, count: int) -> NDArray[np.float64]:
    return bound * (2 * random.random_sample(count) - 1)


@torch.no_grad()
def _fill(weight: Tensor, name: str, seed: int, draws: Draws) -> None:
    """Fills a weight [...], in the order of its elements by index, with draws keyed by seed and name."""
    if weight.is_meta:
        return
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    drawn = draws(generator(seed, Stream.WEIGHTS, key), weight.numel())
    weight.copy_(torch.from_numpy(drawn.astype(np.float32)).view(weight.shape))
