"""Mixup and CutMix of a batch with its reversal, on the device, and the targets that go with them."""

import torch
from torch import Tensor


def mix_images(images: Tensor, lam: Tensor, box: Tensor, cutmix: Tensor) -> Tensor:
    """Each image mixed with its partner, the batch's reversal: timm's Mixup in batch mode, a draw per image.

    images [B, C, H, W] float; lam [B] float, the share of the image itself; box [B, 4] int (top, left, bottom, right),
    where a CutMix image shows its partner; cutmix [B] bool. One expression without branches, so that it compiles into
    the step whatever was drawn.
    """
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    top, left, bottom, right = box[:, :, None].unbind(1)  # each B 1
    inside_rows = (rows >= top) & (rows < bottom)  # B H
    inside_columns = (columns >= left) & (columns < right)  # B W
    pasted = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]  # B 1 H W
    share = torch.where(cutmix[:, None, None, None], (~pasted).to(lam.dtype), lam[:, None, None, None])
    partner = images.flip(0)
    return partner + share.to(images.dtype) * (images - partner)


def mix_targets(labels: Tensor, num_classes: int, smoothing: float, lam: Tensor | None) -> Tensor:
    """Targets [B, num_classes] of labels [B]: smoothed one-hots, mixed with their reversal by lam [B]; None is unmixed.

    Smoothing is timm's: every class gets smoothing / num_classes, the label what is left of one.
    """
    off = smoothing / num_classes
    targets = torch.full((labels.shape[0], num_classes), off, device=labels.device)
    targets.scatter_(1, labels[:, None], 1.0 - smoothing + off)
    if lam is None:
        return targets
    return targets * lam[:, None] + targets.flip(0) * (1.0 - lam[:, None])
