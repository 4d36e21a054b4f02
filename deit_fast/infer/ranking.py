"""The order of classes in all figures: the first place, the first five places, and whether a tie decided them.

Classes are ordered by descending logit, and classes with equal logits by ascending label. Every image is then a whole
hit or miss, on every device alike, and the class in the first place is also among the first five. Logits are compared,
not probabilities, because different logits may have equal probabilities. Ties are not rare: bf16 has 8 bits of
precision, with which 1.6 to 3 % of ImageNet's images have two equal largest logits.
"""

import torch
from torch import Tensor


def rank_classes(logits: Tensor, count: int) -> Tensor:
    """The classes of the first `count` places, int64 [B, count], or [B, K] if K is less; logits: [B, K]."""
    return logits.sort(dim=1, descending=True, stable=True).indices[:, :count]


def tied_for(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """bool [B]: whether a tie decided if an image's label is among the first `count` places.

    logits: [B, K], labels: int64 [B].
    """
    own = logits.gather(1, labels[:, None])
    above, level = (logits > own).sum(dim=1), (logits == own).sum(dim=1)  # `level` includes the label itself
    return (above < count) & (above + level > count)


def are_finite(logits: Tensor) -> Tensor:
    """bool [B]: whether all of an image's logits [B, K] are finite; other logits have no order."""
    return torch.isfinite(logits).all(dim=1)
