"""Top-1 and top-5 accuracy, percent: the label has the first place, or one of the first five (ranking.py)."""

import torch
from torch import Tensor

from deit_fast.infer.metrics import Metric, Predicted, Totals
from deit_fast.infer.ranking import tied_for


def count_hits(seen: Predicted) -> Tensor:
    """int64 [4], numbers of images: label in the first place, label in the first five places, ties, non-finite logits.

    Ties are counted where they decide one of these two. An image whose logits are not all finite counts as wrong.
    """
    hits = seen.top5 == seen.labels[:, None]
    tied = tied_for(seen.logits, seen.labels, 1) | tied_for(seen.logits, seen.labels, 5)
    return torch.stack([hits[:, 0].sum(), hits.sum(), (tied & seen.finite).sum(), (~seen.finite).sum()])


def accuracies(counts: Totals, images: int) -> dict[str, float]:
    """top1 and top5, percent; if they occur, ties in percent and nonfinite as a number of images."""
    top1, top5, ties, nonfinite = counts.tolist()
    found = {"top1": 100 * top1 / images, "top5": 100 * top5 / images}
    if ties:
        found["ties"] = 100 * ties / images
    if nonfinite:
        found["nonfinite"] = nonfinite
    return found


METRIC = Metric(count_hits, accuracies)
