import math
from collections.abc import Iterator

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from deit_fast.recipe.sections import Schedule
from deit_fast.training.schedule import learning_rate, total_steps


def optimizer(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def test_every_step_follows_timms_cosine() -> None:
    schedule = Schedule(epochs=30, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5)
    sgd = optimizer(4e-3)
    timm = CosineLRScheduler(sgd, t_initial=30 * 7, lr_min=1e-5, warmup_t=5 * 7, warmup_lr_init=1e-6, t_in_epochs=False)
    for step in range(30 * 7):
        timm.step_update(step)
        assert learning_rate(schedule, 4e-3, step, 7) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9), step


def epochs_of_timm(lr: float, epochs: int) -> list[float]:
    """Rates of a scheduler that is stepped with the number of the epoch, from 0 on."""
    sgd = optimizer(lr)
    timm = CosineLRScheduler(sgd, t_initial=epochs, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    rates = []
    for epoch in range(epochs):
        timm.step(epoch)
        rates.append(sgd.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("within", [0, 3, 6])
@pytest.mark.parametrize(("lr", "epochs"), [(4e-3, 800), (3e-3, 400), (1e-5, 20)])
def test_whole_runs_by_the_epoch(lr: float, epochs: int, within: int) -> None:
    """The reference steps the scheduler after epoch e with e, PASSL before it."""
    rates = epochs_of_timm(lr, epochs)
    reference = Schedule(epochs=epochs, reference_epoch_steps=True)
    passl = Schedule(epochs=epochs, update="epoch")
    for epoch in range(epochs):
        step = 7 * epoch + within
        assert learning_rate(reference, lr, step, 7) == pytest.approx(rates[max(epoch - 1, 0)], rel=1e-9)
        assert learning_rate(passl, lr, step, 7) == pytest.approx(rates[epoch], rel=1e-9)


def test_reference_epoch_steps_gives_the_published_log() -> None:
    """Learning rates that the published ViT-S run logged for its first epochs."""
    schedule = Schedule(epochs=800, reference_epoch_steps=True)
    logged = [1e-6, 1e-6, 0.0008008, 0.0016006, 0.0024004, 0.0032002, 0.0039996]
    for epoch, expected in enumerate(logged):
        for within in (0, 624):
            assert learning_rate(schedule, 4e-3, epoch * 625 + within, 625) == pytest.approx(expected, rel=1e-4)


def test_passls_epochs() -> None:
    """DeiT-B, 300 epochs at 1e-3: fifths of the peak, then phases of 3, 60 and 90 degrees."""
    schedule = Schedule(epochs=300, update="epoch")
    typed = {0: 1e-6, 1: 2.008e-4, 2: 4.006e-4, 3: 6.004e-4, 4: 8.002e-4, 5: 9.993217e-4, 100: 7.525e-4, 150: 5.05e-4}
    for epoch, expected in typed.items():
        for within in (0, 1250):
            assert learning_rate(schedule, 1e-3, 1251 * epoch + within, 1251) == pytest.approx(expected, rel=1e-6)


def test_deit3_jax_counts_in_steps_and_starts_the_cosine_after_the_warmup() -> None:
    """ViT-S, 400 epochs: floor(5 * 1281167 / 2048) = 3127 steps of warmup, 250227 in all, where our epoch has 625."""
    schedule = Schedule(epochs=250227 / 625, warmup_epochs=3127 / 625, warmup_prefix=True)
    assert total_steps(schedule, 625) == 250227
    typed = {
        0: 1e-6,
        1: 1e-6 + 3.999e-3 / 3127,
        3126: 4e-3 - 3.999e-3 / 3127,
        3127: 4e-3,
        3127 + 61775: 1e-5 + 3.99e-3 * (1 + math.sqrt(0.5)) / 2,
        3127 + 123550: 1e-5 + 3.99e-3 / 2,
        250227: 1e-5,
        260000: 1e-5,
    }
    for step, expected in typed.items():
        assert learning_rate(schedule, 4e-3, step, 625) == pytest.approx(expected, rel=1e-9), step


def mmpretrain(lr: float, steps_per_epoch: int) -> Iterator[float]:
    """Warmup by the iteration over 20 epochs, then the cosine by the epoch over 280."""
    sgd = optimizer(lr)
    warmup = LinearLR(sgd, start_factor=1e-3, total_iters=20 * steps_per_epoch)
    for _ in range(20 * steps_per_epoch):
        yield sgd.param_groups[0]["lr"]
        sgd.step()
        warmup.step()
    sgd = optimizer(lr)
    cosine = CosineAnnealingLR(sgd, T_max=280, eta_min=1e-5)
    for _ in range(280):
        yield from [sgd.param_groups[0]["lr"]] * steps_per_epoch
        sgd.step()
        cosine.step()


def test_mmpretrain_warms_up_by_the_step_and_decays_by_the_epoch() -> None:
    schedule = Schedule(
        epochs=300, warmup_epochs=20, warmup_lr=1e-6, min_lr=1e-5, warmup_prefix=True, update="epoch_after_warmup"
    )
    expected = list(mmpretrain(1e-3, 4))
    actual = [learning_rate(schedule, 1e-3, step, 4) for step in range(300 * 4)]
    assert actual == pytest.approx(expected, rel=1e-7)
    assert (actual[0], actual[80], actual[640]) == pytest.approx((1e-6, 1e-3, 5.05e-4))


def test_a_warmup_that_ends_within_an_epoch() -> None:
    schedule = Schedule(epochs=10, warmup_epochs=2.5, warmup_prefix=True, update="epoch_after_warmup")
    rates = [learning_rate(schedule, 1e-3, step, 4) for step in range(40)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:12] == [1e-3, 1e-3]
    assert rates[12:] == sorted(rates[12:], reverse=True)
    assert rates[12] == pytest.approx(1e-5 + 9.9e-4 * (1 + math.cos(math.pi / 15)) / 2)


def test_ends_at_the_minimum() -> None:
    schedule = Schedule(epochs=10, warmup_epochs=0, min_lr=1e-5)
    assert learning_rate(schedule, 1e-3, 0, 50) == pytest.approx(1e-3)
    assert learning_rate(schedule, 1e-3, 500, 50) == pytest.approx(1e-5)
    assert learning_rate(schedule, 1e-3, 900, 50) == pytest.approx(1e-5)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 7), (0.5, 4), (2.0, 14), (0.001, 1), (100 / 7, 100)])
def test_total_steps(epochs: float, steps: int) -> None:
    assert total_steps(Schedule(epochs=epochs, warmup_epochs=0), 7) == steps
