"""Cuts classification heads of ImageNet-21k down to ImageNet-1k, by the places of the thousand classes in them."""

import functools
import json
from importlib import resources

import torch
from torch import Tensor

from deit_fast.zoo.class_names import imagenet_classes

UNMAPPED_BIAS = -10.0
"""Bias of a class that the larger head lacks; its weights are zero (as in deit3-jax)."""

WINTER21 = 19167
_LARGE = (WINTER21, 21841, 21843)


def maps_to_1k(classes: int, target: int) -> bool:
    """Whether `classes` is the size of an ImageNet-21k head and `target` is 1,000, the size of an ImageNet-1k head."""
    return target == 1000 and classes in _LARGE


@functools.cache
def pairs_to_1k(classes: int) -> list[tuple[int, int]]:
    """Pairs (index in the larger head, index in ImageNet-1k), matched by WordNet id.

    For 19,167 classes, the winter 2021 release, there are 999 pairs from deit3-jax (class 850 has no counterpart). The
    lists for other sizes are timm's.
    """
    if classes == WINTER21:
        table = json.loads(resources.files(__package__).joinpath("winter21_to_1k.json").read_text())
        return list(zip(table["src"], table["dst"], strict=True))
    index = {synset: number for number, synset in enumerate(imagenet_classes(classes))}
    return [(index[synset], number) for number, synset in enumerate(imagenet_classes()) if synset in index]


def cut_head(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The 1,000 ImageNet-1k rows of a head with weight [K, D] and bias [K] of ImageNet-21k -> [1000, D], [1000]."""
    large, small = map(list, zip(*pairs_to_1k(weight.shape[0]), strict=True))
    cut = weight.new_zeros(1000, weight.shape[1])
    cut_bias = torch.full_like(bias[:1], UNMAPPED_BIAS).repeat(1000)
    cut[small], cut_bias[small] = weight[large], bias[large]
    return cut, cut_bias
