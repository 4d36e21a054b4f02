import pytest
import torch
from timm.scheduler import CosineLRScheduler

from deit_fast.schedule import learning_rate, total_steps
from deit_fast.sections import Schedule


def test_every_step_follows_timms_cosine() -> None:
    schedule = Schedule(epochs=30, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=4e-3)
    timm = CosineLRScheduler(
        optimizer, t_initial=30 * 7, lr_min=1e-5, warmup_t=5 * 7, warmup_lr_init=1e-6, t_in_epochs=False
    )
    for step in range(30 * 7):
        timm.step_update(step)
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(schedule, 4e-3, step, 7) == pytest.approx(expected, rel=1e-9), step


def test_reference_epoch_steps_gives_the_published_log() -> None:
    """Learning rates that the published ViT-S run logged for its first epochs."""
    schedule = Schedule(epochs=800, reference_epoch_steps=True)
    logged = [1e-6, 1e-6, 0.0008008, 0.0016006, 0.0024004, 0.0032002, 0.0039996]
    for epoch, expected in enumerate(logged):
        for within in (0, 624):
            assert learning_rate(schedule, 4e-3, epoch * 625 + within, 625) == pytest.approx(expected, rel=1e-4)


def test_ends_at_the_minimum() -> None:
    schedule = Schedule(epochs=10, warmup_epochs=0, min_lr=1e-5)
    assert learning_rate(schedule, 1e-3, 0, 50) == pytest.approx(1e-3)
    assert learning_rate(schedule, 1e-3, 500, 50) == pytest.approx(1e-5)
    assert learning_rate(schedule, 1e-3, 900, 50) == pytest.approx(1e-5)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 7), (0.5, 4), (2.0, 14), (0.001, 1), (100 / 7, 100)])
def test_total_steps(epochs: float, steps: int) -> None:
    assert total_steps(Schedule(epochs=epochs, warmup_epochs=0), 7) == steps
