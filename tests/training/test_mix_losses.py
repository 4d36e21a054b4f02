import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.mixup import cutmix_bbox_and_lam
from timm.loss import SoftTargetCrossEntropy

from deit_fast.data.augment.mix import mix_images, mix_targets
from deit_fast.recipe.sections import Loss
from deit_fast.training.objective import compute_loss

CLASSES = 7


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(size, 3, 20, 20), torch.randint(CLASSES, (size,))


def ours(images, labels, lam, box, cutmix, smoothing):
    count = len(images)
    lam = torch.full((count,), lam)
    box = torch.tensor(box).expand(count, 4)
    return (
        mix_images(images, lam, box, torch.full((count,), cutmix)),
        mix_targets(labels, CLASSES, smoothing, lam),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("cutmix", [False, True])
def test_equals_timms_batch_mode(monkeypatch: pytest.MonkeyPatch, cutmix: bool, smoothing: float) -> None:
    images, labels = batch()
    mixup = Mixup(0.8, 1.0, label_smoothing=smoothing, num_classes=CLASSES)
    monkeypatch.setattr(mixup, "_params_per_batch", lambda: (0.3, cutmix))
    np.random.seed(3)  # noqa: NPY002 (timm draws from the global generator)
    (yl, yh, xl, xh), lam = cutmix_bbox_and_lam(images.shape, 0.3)
    np.random.seed(3)  # noqa: NPY002
    expected, targets = mixup(images.clone(), labels)
    box = (yl, xl, yh, xh) if cutmix else (0, 0, 0, 0)
    mixed, mixed_targets = ours(images, labels, float(lam) if cutmix else 0.3, box, cutmix, smoothing)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(mixed_targets, targets.float())


def test_each_image_has_its_own_draw() -> None:
    images, labels = batch(4)
    lam = torch.tensor([0.25, 1.0, 1.0, 0.25])
    box = torch.tensor([[0, 0, 0, 0], [2, 3, 5, 9], [2, 3, 5, 9], [0, 0, 0, 0]])
    mixed = mix_images(images, lam, box, torch.tensor([False, True, True, False]))
    torch.testing.assert_close(mixed[0], 0.25 * images[0] + 0.75 * images[3])
    assert torch.equal(mixed[1, :, 2:5, 3:9], images[2, :, 2:5, 3:9])
    outside = torch.ones(20, 20, dtype=torch.bool)
    outside[2:5, 3:9] = False
    torch.testing.assert_close(mixed[1][:, outside], images[1][:, outside])
    assert mix_targets(labels, CLASSES, 0.0, lam)[1, labels[1]] == 1


def test_channels_last_survives() -> None:
    images, _ = batch()
    images = images.to(memory_format=torch.channels_last)
    mixed, _ = ours(images, torch.zeros(6, dtype=torch.long), 0.5, (1, 1, 4, 4), True, 0.0)
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_bce_binarises_after_mixing() -> None:
    _, labels = batch()
    logits = torch.randn(6, CLASSES)
    targets = mix_targets(labels, CLASSES, 0.0, torch.full((6,), 0.3))
    hot = ((F.one_hot(labels, CLASSES) + F.one_hot(labels.flip(0), CLASSES)) > 0).float()
    expected = F.binary_cross_entropy_with_logits(logits, hot)
    torch.testing.assert_close(compute_loss(Loss(name="bce"), logits, targets), expected)


def test_a_partner_with_no_share_is_no_target() -> None:
    targets = mix_targets(torch.tensor([0, 1]), 2, 0.0, torch.ones(2))
    assert targets.tolist() == [[1, 0], [0, 1]]


def test_cross_entropy_is_timms_soft_target_loss() -> None:
    _, labels = batch()
    logits = torch.randn(6, CLASSES)
    targets = mix_targets(labels, CLASSES, 0.1, torch.full((6,), 0.3))
    expected = SoftTargetCrossEntropy()(logits, targets)
    torch.testing.assert_close(compute_loss(Loss(name="cross_entropy", smoothing=0.1), logits, targets), expected)


def test_unmixed_smoothing_is_torchs() -> None:
    _, labels = batch()
    logits = torch.randn(6, CLASSES)
    loss = compute_loss(Loss(name="cross_entropy"), logits, mix_targets(labels, CLASSES, 0.1, None))
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, label_smoothing=0.1))
