"""Top-1 and top-5 accuracy, percent: the label has the largest logit, or one of the five largest."""

import torch
from torch import Tensor

from deit_fast.infer.metrics import Metric, Predicted, Totals


def count_hits(seen: Predicted) -> Tensor:
    """int64 [2]: images whose label has the largest logit, and those where it is among the five largest."""
    hits = seen.top5 == seen.labels[:, None]
    return torch.stack([hits[:, 0].sum(), hits.sum()])


def accuracies(hits: Totals, images: int) -> dict[str, float]:
    """top1 and top5, percent."""
    top1, top5 = hits.tolist()
    return {"top1": 100 * top1 / images, "top5": 100 * top5 / images}


METRIC = Metric(count_hits, accuracies)
