"""The losses, each of logits [B, K] and a mean over the batch unless it says otherwise."""

import torch.nn.functional as F
from torch import Tensor

from deit_fast.recipe.sections import Distill, Loss


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over batch and classes against targets > 0: binarised after mixing (facebookresearch/deit engine.py)."""
    return F.binary_cross_entropy_with_logits(logits, (targets > 0).to(logits.dtype))


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of soft targets that sum to one."""
    return F.cross_entropy(logits, targets)


def compute_loss(section: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    """The recipe's loss of soft targets [B, K], in fp32 whatever the logits' type; a scalar."""
    loss = binary_cross_entropy if section.name == "bce" else soft_cross_entropy
    return loss(logits.float(), targets)


def cosub_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cosub (arXiv:2212.04884): logits [2 B, K] of two passes over the same images, targets [B, K] binarised as above.

    A quarter each: either pass against the labels, and against the other's probabilities, which are held fixed.
    """
    first, second = logits.float().chunk(2)
    labels = binary_cross_entropy(first, targets) + binary_cross_entropy(second, targets)
    between = F.binary_cross_entropy_with_logits(first, second.detach().sigmoid())
    between = between + F.binary_cross_entropy_with_logits(second, first.detach().sigmoid())
    return 0.25 * (labels + between)


def distillation_loss(section: Distill, student: Tensor, teacher: Tensor) -> Tensor:
    """How far the distillation head's logits [B, K] are from the teacher's [B, K] (facebookresearch/deit losses.py).

    hard: cross-entropy with the teacher's decision. soft: the divergence at temperature tau times tau squared, a mean
    over batch and classes, so that for K classes it weighs 1 / K of what the paper's formula says: the reference kept
    that for the sake of its published results (its issue 61).
    """
    if section.kind == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1))
    log_student, log_teacher = (F.log_softmax(logits / section.tau, dim=1) for logits in (student, teacher))
    divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return divergence * section.tau**2 / student.numel()
