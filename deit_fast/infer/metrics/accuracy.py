"""Top-1 and top-5 accuracy, percent: the label has the first place, or one of the first five (infer/ranking.py)."""

import torch
from torch import Tensor

from deit_fast.infer.metrics import Metric, Predicted, Totals
from deit_fast.infer.ranking import tied_for


def count_hits(seen: Predicted) -> Tensor:
    """int64 [4]: images whose label has the first place, those where it is among the first five, those of which a tie
    decided one of the two, and those whose logits are not all finite, which hit nothing."""
    hits = seen.top5 == seen.labels[:, None]
    tied = tied_for(seen.logits, seen.labels, 1) | tied_for(seen.logits, seen.labels, 5)
    return torch.stack([hits[:, 0].sum(), hits.sum(), (tied & seen.finite).sum(), (~seen.finite).sum()])


def accuracies(counts: Totals, images: int) -> dict[str, float]:
    """top1 and top5, percent; where there are any, ties, percent, and nonfinite, images."""
    top1, top5, ties, nonfinite = counts.tolist()
    found = {"top1": 100 * top1 / images, "top5": 100 * top5 / images}
    if ties:
        found["ties"] = 100 * ties / images
    if nonfinite:
        found["nonfinite"] = nonfinite
    return found


METRIC = Metric(count_hits, accuracies)
