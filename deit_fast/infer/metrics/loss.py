"""Mean cross-entropy, nats: the negative log-likelihood of the labels, without smoothing."""

import torch.nn.functional as F
from torch import Tensor

from deit_fast.infer.metrics import Metric, Predicted, Totals


def sum_losses(seen: Predicted) -> Tensor:
    """The sum [] of the cross-entropies of the images, nats."""
    return F.cross_entropy(seen.logits, seen.labels, reduction="sum")


def mean_loss(total: Totals, images: int) -> dict[str, float]:
    """loss: nats per image."""
    return {"loss": total.item() / images}


METRIC = Metric(sum_losses, mean_loss)
