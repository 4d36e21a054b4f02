"""Classification heads of ImageNet-21k cut down to ImageNet-1k: which of their classes are the thousand."""

import functools
import json
from importlib import resources

import torch
from torch import Tensor

from deit_fast.zoo.class_names import imagenet_classes

UNMAPPED_BIAS = -10.0
"""Bias of a class that the larger head does not know; its weights are zero (deit3-jax)."""

WINTER21 = 19167
_LARGE = (WINTER21, 21841, 21843)


def maps_to_1k(classes: int, target: int) -> bool:
    """Whether `classes` is the size of a head of ImageNet-21k, and `target` that of one of ImageNet-1k, 1,000."""
    return target == 1000 and classes in _LARGE


@functools.cache
def pairs_to_1k(classes: int) -> list[tuple[int, int]]:
    """(index in the larger head, index of ImageNet-1k), by WordNet's names.

    19,167: the winter 2021 release, 999 pairs of deit3-jax (class 850 has no counterpart). The lists of the others are
    timm's.
    """
    if classes == WINTER21:
        table = json.loads(resources.files(__package__).joinpath("winter21_to_1k.json").read_text())
        return list(zip(table["src"], table["dst"], strict=True))
    index = {synset: number for number, synset in enumerate(imagenet_classes(classes))}
    return [(index[synset], number) for number, synset in enumerate(imagenet_classes()) if synset in index]


def cut_head(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The 1,000 rows of a head, weight [K, D] and bias [K] of ImageNet-21k's K classes -> [1000, D], [1000]."""
    large, small = map(list, zip(*pairs_to_1k(weight.shape[0]), strict=True))
    cut = weight.new_zeros(1000, weight.shape[1])
    cut_bias = torch.full_like(bias[:1], UNMAPPED_BIAS).repeat(1000)
    cut[small], cut_bias[small] = weight[large], bias[large]
    return cut, cut_bias
