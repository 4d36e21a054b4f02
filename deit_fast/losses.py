"""The two losses of DeiT III, of logits [B, K] and soft targets [B, K], as a mean over the batch."""

import torch.nn.functional as F
from torch import Tensor

from deit_fast.sections import Loss


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over batch and classes against targets > 0: binarised after mixing (facebookresearch/deit engine.py)."""
    return F.binary_cross_entropy_with_logits(logits, (targets > 0).to(logits.dtype))


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of soft targets that sum to one."""
    return F.cross_entropy(logits, targets)


def compute_loss(section: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    """The recipe's loss in fp32, whatever the logits' type; a scalar."""
    loss = binary_cross_entropy if section.name == "bce" else soft_cross_entropy
    return loss(logits.float(), targets)
