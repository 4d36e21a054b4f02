"""The one order of classes: what is first, what is among the first five, and when a tie decided it.

By falling logit, and of equal logits the class with the smaller label first: whole hits, the same on every device, and
whoever is first is among the first five. Logits are compared, not probabilities, of which different ones may be equal.
Ties are no rarity: bf16 has 8 bits, with which 1.6 to 3 % of ImageNet's images have two largest logits.
"""

import torch
from torch import Tensor


def rank_classes(logits: Tensor, count: int) -> Tensor:
    """The classes of the `count` first places, int64 [B, count], or [B, K] where K is less; logits: [B, K]."""
    return logits.sort(dim=1, descending=True, stable=True).indices[:, :count]


def tied_for(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Whether a tie decided that an image's label is among the first `count`, or is not: bool [B].

    logits: [B, K], labels: int64 [B].
    """
    own = logits.gather(1, labels[:, None])
    above, level = (logits > own).sum(dim=1), (logits == own).sum(dim=1)  # level counts the label itself
    return (above < count) & (above + level > count)


def are_finite(logits: Tensor) -> Tensor:
    """Whether all of an image's logits are finite, bool [B]; others, of [B, K], are in no order."""
    return torch.isfinite(logits).all(dim=1)
