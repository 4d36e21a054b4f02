"""Mean cross-entropy, nats: the negative log-likelihood of the labels, without smoothing."""

import torch.nn.functional as F
from torch import Tensor

from deit_fast.infer.metrics import Metric, Predicted, Totals


def sum_losses(seen: Predicted) -> Tensor:
    """Scalar."""
    return F.cross_entropy(seen.logits, seen.labels, reduction="sum")


def mean_loss(total: Totals, images: int) -> dict[str, float]:
    return {"loss": total.item() / images}


METRIC = Metric(sum_losses, mean_loss)
