"""The training loss of one batch: normalise, mix, forward, loss, in one region for torch.compile."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deit_fast.data.augment.erase import erase
from deit_fast.data.augment.mix_apply import mix_images, mix_targets
from deit_fast.data.augment.mix_draw import draw_mix
from deit_fast.data.loader.loaders import Batch
from deit_fast.infer.precision import Classifier
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.world import to_device
from deit_fast.training.distill import Teacher
from deit_fast.training.losses import compute_loss, cosub_loss, distillation_loss
from deit_fast.zoo import find_architecture


class Mixing(NamedTuple):
    """Draws of mixup and CutMix for a batch, on the device."""

    lam: Tensor  # B, share of the image itself
    box: Tensor  # B 4, top, left, bottom, right of what CutMix pastes
    cutmix: Tensor  # B bool


class Erasing(NamedTuple):
    """Draws of random erasing for a batch, on the device."""

    boxes: Tensor  # B n 4, top, left, bottom, right
    keys: Tensor  # B 2, of the noise


class MicroBatch(NamedTuple):
    """What one forward-backward pass takes."""

    images: Tensor  # B 3 S S uint8, channels-last
    labels: Tensor  # B
    mixing: Mixing | None
    erasing: Erasing | None = None


def build_micro_batch(recipe: Recipe, batch: Batch, device: torch.device) -> MicroBatch:
    """A batch of the loader as the step takes it, with its draws of mixup, CutMix and random erasing."""
    mixing, erasing = None, None
    if recipe.mix.active:
        assert batch.positions is not None
        run, seed = recipe.run, recipe.run.seed_of("mix")
        drawn = draw_mix(recipe.mix, seed, batch.step, batch.positions, run.global_batch, recipe.model.image_size)
        mixing = Mixing(*(to_device(array, device) for array in (drawn.lam, drawn.box, drawn.cutmix)))
    if batch.erasing is not None:
        erasing = Erasing(to_device(batch.erasing.boxes, device), to_device(batch.erasing.keys, device))
    return MicroBatch(batch.images, batch.labels, mixing, erasing)


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
            student.set_distilled_training(teacher is not None)  # without a teacher it learns as it predicts

    def forward(self, images: Tensor, labels: Tensor, mixing: Mixing | None, erasing: Erasing | None = None) -> Tensor:
        """The fields of a MicroBatch -> its loss: the order is normalise, erase, mix, then student and teacher."""
        inputs = self.classifier.normalise(images)
        if erasing is not None:
            inputs = erase(inputs, *erasing, self.recipe.augment.erase_mode)
        if mixing is not None:
            inputs = mix_images(inputs, *mixing)
        if self.teacher is not None:
            logits, student = self.classifier.head_logits(inputs)
        else:
            # Cosub's two passes are one over twice the batch: stochastic depth draws for each of its rows.
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
