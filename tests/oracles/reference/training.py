"""One optimizer step of the reference, without fp16: the GPUs' batches one after another on one machine."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tests.oracles.reference.mixing import Draw, mix, smoothed_one_hot
from tests.oracles.reference.optimizers import AdamW, Lamb
from tests.oracles.reference.vit import VisionTransformer

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Settings:
    """The options of the reference's command line."""

    bce: bool = True
    smoothing: float = 0.0
    optimizer: type[Lamb] | type[AdamW] = Lamb
    weight_decay: float = 0.05
    max_grad_norm: float | None = 1.0
    """FusedLAMB's default; AdamW's is None without --clip-grad."""
    ema_decay: float = 0.99996


class GpuBatch(NamedTuple):
    images: Tensor  # uint8 [B, 3, S, S]
    labels: Tensor  # [B]
    draw: Draw | None


class Reference:
    def __init__(self, model: VisionTransformer, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.ema = copy.deepcopy(model)
        self.optimizer = settings.optimizer(
            model, settings.weight_decay, (0.9, 0.999), eps=1e-8, max_grad_norm=settings.max_grad_norm
        )

    def step(self, gpus: Sequence[GpuBatch], lr: float, masks: list[Tensor] | None = None) -> float:
        """One step over the batches of all GPUs with averaged gradients; returns the mean loss before the step."""
        self.model.train()
        self.model.zero_grad()
        total = 0.0
        for batch in gpus:
            loss = self.loss(batch, masks)
            (loss / len(gpus)).backward()
            total += float(loss.detach()) / len(gpus)
        self.optimizer.step(lr)
        decay = self.settings.ema_decay
        with torch.no_grad():
            for average, weight in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.copy_(decay * average + (1 - decay) * weight)
        return total

    def loss(self, batch: GpuBatch, masks: list[Tensor] | None = None) -> Tensor:
        images = normalise(batch.images)
        targets = smoothed_one_hot(batch.labels, self.model.head.out_features, self.settings.smoothing)
        if batch.draw is not None:
            images, targets = mix(images, targets, batch.draw)
        logits = self.model(images, masks)
        if self.settings.bce:
            return binary_cross_entropy(logits, (targets > 0).float())
        return -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()


def normalise(images: Tensor) -> Tensor:
    return (images.float() / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """For targets in {0, 1}; averaged over batch and classes."""
    positive, negative = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    return -(targets * positive + (1 - targets) * negative).mean()
