"""The training loss of one batch: normalise, erase, mix, forward, loss, in one region for torch.compile.

`Objective` comes first. The losses below it take logits [B, K] and return a mean over the batch, unless they say
otherwise.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit_fast.data.augment.erase import draw_erasing, erase
from deit_fast.data.augment.mix import draw_mix, mix_images, mix_targets
from deit_fast.data.loader.batches import Batch
from deit_fast.infer.precision import Classifier
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import Distill, Loss
from deit_fast.runtime.world import to_device
from deit_fast.training.distill import Teacher
from deit_fast.zoo import find_architecture


class Mixing(NamedTuple):
    """Draws of mixup and CutMix for a batch, on the device."""

    lam: Tensor  # float32 [B], the image's own share
    box: Tensor  # int32 [B, 4], px: top, left, bottom, right of the box that CutMix pastes
    cutmix: Tensor  # bool [B]


class Erasing(NamedTuple):
    """Draws of random erasing for a batch, on the device."""

    boxes: Tensor  # int32 [B, n, 4], px: top, left, bottom, right
    keys: Tensor  # int64 [B, 2], keys of the noise


class MicroBatch(NamedTuple):
    """The input of one forward-backward pass."""

    images: Tensor  # uint8 [B, 3, S, S], channels-last
    labels: Tensor  # int64 [B]
    mixing: Mixing | None
    erasing: Erasing | None = None


class BatchBuilder:
    """Converts the loader's batches to the step's inputs: draws mixup and CutMix, and moves all draws to the device."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._mix = recipe.mix if recipe.mix.active else None
        self._seed = recipe.run.seed_of("mix")
        self._global_batch, self._image_size = recipe.run.global_batch, recipe.model.image_size
        self._device = device

    def __call__(self, batch: Batch) -> MicroBatch:
        """A batch of B images with its draws, which are a function of seed, step and place in the global batch."""
        mixing, erasing = None, None
        if self._mix is not None:
            assert batch.positions is not None
            drawn = draw_mix(self._mix, self._seed, batch.step, batch.positions, self._global_batch, self._image_size)
            mixing = Mixing(*(to_device(array, self._device) for array in (drawn.lam, drawn.box, drawn.cutmix)))
        if batch.erasing is not None:
            erasing = Erasing(to_device(batch.erasing.boxes, self._device), to_device(batch.erasing.keys, self._device))
        return MicroBatch(batch.images, batch.labels, mixing, erasing)


def blank_batch(recipe: Recipe, size: int, device: torch.device) -> MicroBatch:
    """`size` black images of class 0 with the draws of the first step: a batch for trying torch.compile.

    Shapes, types and strides are those of any batch of the run. No generator of torch is used.
    """
    side, places = recipe.model.image_size, np.arange(size)
    images = torch.zeros(size, 3, side, side, dtype=torch.uint8, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(size, dtype=torch.int64, device=device)
    erasing = draw_erasing(recipe.augment, side, 0, 0, places, np.zeros_like(places)) if recipe.augment.erase else None
    return BatchBuilder(recipe, device)(Batch(images, labels, places, places, 0, 0, size, erasing))


class Objective(nn.Module):
    """The training loss of one batch, [] fp32: one region for torch.compile, and the module that DDP wraps."""

    def __init__(self, classifier: Classifier, recipe: Recipe, teacher: Teacher | None = None) -> None:
        super().__init__()
        assert (teacher is not None) == (recipe.distill.kind != "none")
        self.classifier = classifier
        self.recipe = recipe
        self.teacher = teacher
        if find_architecture(recipe.model.name).distilled:
            student: Any = classifier.model
            student.set_distilled_training(teacher is not None)  # without a teacher it trains as it predicts

    def forward(self, images: Tensor, labels: Tensor, mixing: Mixing | None, erasing: Erasing | None = None) -> Tensor:
        """The loss [] fp32 of a MicroBatch, given by its fields: images uint8 [B, 3, S, S], labels int64 [B], draws.

        The order is: normalise, erase, mix, then student and teacher.
        """
        inputs = self.classifier.normalise(images)
        if erasing is not None:
            inputs = erase(inputs, *erasing, self.recipe.augment.erase_mode)
        if mixing is not None:
            inputs = mix_images(inputs, *mixing)
        if self.teacher is not None:
            logits, student = self.classifier.head_logits(inputs)
        else:
            # Cosub's two passes run as one pass over twice the batch: stochastic depth draws for each of its rows.
            logits = self.classifier.logits(torch.cat([inputs, inputs]) if self.recipe.loss.cosub else inputs)
        smoothing = self.recipe.loss.smoothing
        targets = mix_targets(labels, logits.shape[1], smoothing, None if mixing is None else mixing.lam)
        if self.recipe.loss.cosub:
            return cosub_loss(logits, targets)
        loss = compute_loss(self.recipe.loss, logits, targets)
        if self.teacher is None:
            return loss
        distill = self.recipe.distill
        with torch.no_grad():
            taught = self.classifier.run(self.teacher.model, inputs).float()
        return (1 - distill.alpha) * loss + distill.alpha * distillation_loss(distill, student, taught)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean [] over logits [B, K] of the loss against targets [B, K] > 0, binarised after mixing.

    Source: facebookresearch/deit engine.py.
    """
    return F.binary_cross_entropy_with_logits(logits, (targets > 0).to(logits.dtype))


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy [] of logits [B, K] with soft targets [B, K] that sum to one over the classes."""
    return F.cross_entropy(logits, targets)


def compute_loss(section: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    """The recipe's loss [] for soft targets [B, K], computed in fp32 for logits of any type."""
    loss = binary_cross_entropy if section.name == "bce" else soft_cross_entropy
    return loss(logits.float(), targets)


def cosub_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cosub (arXiv:2212.04884): logits [2 B, K] of two passes over the same images, targets [B, K] binarised as above.

    The loss has four terms of weight 1/4: each pass against the labels, and each pass against the other's
    probabilities, which get no gradient.
    """
    first, second = logits.float().chunk(2)
    labels = binary_cross_entropy(first, targets) + binary_cross_entropy(second, targets)
    between = F.binary_cross_entropy_with_logits(first, second.detach().sigmoid())
    between = between + F.binary_cross_entropy_with_logits(second, first.detach().sigmoid())
    return 0.25 * (labels + between)


def distillation_loss(section: Distill, student: Tensor, teacher: Tensor) -> Tensor:
    """Distance of the distillation head's logits [B, K] from the teacher's [B, K] (facebookresearch/deit losses.py).

    hard: cross-entropy with the teacher's decision. soft: the divergence at temperature tau, times tau squared, as a
    mean over batch and classes. For K classes this weighs 1 / K of the paper's formula: the reference keeps that
    because of its published results (its issue 61).
    """
    if section.kind == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1))
    log_student, log_teacher = (F.log_softmax(logits / section.tau, dim=1) for logits in (student, teacher))
    divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return divergence * section.tau**2 / student.numel()
