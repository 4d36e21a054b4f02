"""Twenty steps of deit_fast and of the plain reference from the same weights, images and mixing draws: one trajectory.

Losses agree to 1e-5 of their value at every step. Weights and moving averages agree to 1e-4 of the distance that each
tensor travelled (norm of the change), which is stricter than of its own norm, and a rounding of the tensor itself. The
bias of the keys is left out: softmax cancels it, so its gradient is rounding noise, which Adam scales up to full steps.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.oracles.reference import mixing, optimizers, schedule, training, vit
from tests.parity.systems import STEPS, STEPS_PER_EPOCH, Ours, random_batches, reference_of, renamed

EPOCHS, WARMUP = STEPS // STEPS_PER_EPOCH, 2
CASES: dict[str, tuple[str, ...]] = {
    "lamb, bce, mixup and cutmix": (),
    "adamw, cross-entropy, smoothing": (
        "optim.name=adamw", "optim.lr=1e-3", "optim.weight_decay=0.1", "optim.max_grad_norm=null",
        "loss.name=cross_entropy", "loss.smoothing=0.1", "model.layer_scale=0.5",
    ),
    "lamb, cross-entropy, smoothing, cutmix alone": (
        "loss.name=cross_entropy", "loss.smoothing=0.1", "mix.mixup=0", "optim.weight_decay=0.02",
    ),
    "unmixed": ("loss.name=cross_entropy", "loss.smoothing=0.1", "mix.mixup=0", "mix.cutmix=0"),
    "no LayerScale": ("model.layer_scale=null",),
    "a large LayerScale": ("model.layer_scale=0.5",),
    "two GPUs, each with its own draw": ("model.layer_scale=0.5", "mix.group=8"),
    "accumulation": ("model.layer_scale=0.5", "run.accumulation=2"),
    "accumulation over two GPUs' draws": ("model.layer_scale=0.5", "mix.group=8", "run.accumulation=4"),
    "gradient checkpointing": ("model.layer_scale=0.5", "run.grad_checkpointing=true"),
    "the reference's schedule": ("model.layer_scale=0.5", "schedule.reference_epoch_steps=true"),
    "stochastic depth": ("model.layer_scale=0.5", "model.drop_path=0.3", "model.drop_path_mode=bernoulli"),
}  # fmt: skip


class Mismatch(AssertionError):
    """The two systems have parted."""


def compare(words: tuple[str, ...], rates: Callable[..., list[float]] = schedule.rates_per_step) -> Ours:
    ours = Ours(words, *random_batches())
    plain = reference_of(ours.recipe, ours.step.state.model)
    start = {name: value.clone() for name, value in plain.model.state_dict().items()}
    for step, rate in enumerate(rates(EPOCHS, STEPS_PER_EPOCH, WARMUP, ours.recipe.optim.lr)):
        loss = ours.train(step)
        expected = plain.step(ours.gpus(step), rate, list(ours.masks) if ours.recipe.model.drop_path else None)
        if not math.isclose(loss, expected, rel_tol=1e-5):
            raise Mismatch(f"step {step}: loss {loss}, the reference's is {expected}")
    for mine, theirs in ((ours.step.state.model, plain.model), (ours.step.state.ema, plain.ema)):
        weights = renamed(mine)
        for name, expected in theirs.state_dict().items():
            far, travelled = distance(name, weights[name], expected), distance(name, start[name], expected)
            if not far <= 1e-4 * travelled + 2e-7 * float(expected.norm()):
                raise Mismatch(f"{name}: {far:.1e} apart after a way of {travelled:.1e}")
    return ours


def distance(name: str, first: Tensor, second: Tensor) -> float:
    difference = first - second
    if name.endswith("qkv.bias"):
        query, _, value = difference.chunk(3)
        difference = torch.cat([query, value])
    return float(difference.norm())


@pytest.mark.parametrize("words", CASES.values(), ids=CASES.keys())
def test_the_trajectory_is_the_references(words: tuple[str, ...]) -> None:
    late = "schedule.reference_epoch_steps=true" in words
    ours = compare(words, schedule.rates_of_the_reference if late else schedule.rates_per_step)
    model = ours.step.state.model
    assert model.grad_checkpointing == ("run.grad_checkpointing=true" in words)
    if ours.recipe.model.drop_path:
        masks = torch.stack(ours.masks)
        assert len(masks) == 2 * len(model.blocks)
        assert len({tuple(mask.tolist()) for mask in masks}) > 4  # a draw of its own for each branch


def test_stochastic_depth_drops_every_branch_at_the_rate() -> None:
    ours = Ours(CASES["stochastic depth"], *random_batches())
    kept = []
    for step in range(STEPS):
        ours.train(step)
        kept.append(torch.stack(ours.masks))
    share = torch.stack(kept).mean(dim=(0, 2))  # per branch, of 320 samples each: standard deviation 0.026
    assert share.shape == (8,)
    torch.testing.assert_close(share, torch.full((8,), 0.7), rtol=0, atol=0.1)


def rolled(batch: Tensor) -> Tensor:
    return batch.roll(1, 0)


def late(*sizes: float) -> list[float]:
    rates = schedule.rates_per_step(*sizes)
    return [rates[0], *rates[:-1]]


LAMB, CROSS_ENTROPY = CASES["lamb, bce, mixup and cutmix"], CASES["adamw, cross-entropy, smoothing"]
PLANTED = {
    "no trust ratio": (LAMB, optimizers, "trust_ratio", lambda weight, update: 1.0),
    "tokens decay": (LAMB, optimizers, "TOKENS", ()),
    "no smoothing": (CROSS_ENTROPY, training, "smoothed_one_hot", lambda labels, classes, smoothing:
                     mixing.smoothed_one_hot(labels, classes, 0.0)),
    "another partner": (LAMB, mixing, "partners", rolled),
    "targets not mixed": (LAMB, mixing, "mix_targets", lambda targets, lam: targets),
    "another mean": (LAMB, training, "MEAN", (0.5, 0.456, 0.406)),
    "another deviation": (LAMB, training, "STD", (0.229, 0.224, 0.229)),
    "schedule a step late": (LAMB, schedule, "rates_per_step", late),
    "epochs one late": (LAMB, schedule, "rates_per_step", schedule.rates_of_the_reference),
    "stochastic depth not scaled": (CASES["stochastic depth"], vit, "keep", lambda branch, masks, rate:
                                    branch * next(masks)[:, None, None]),
}  # fmt: skip


@pytest.mark.parametrize(("words", "module", "name", "wrong"), PLANTED.values(), ids=PLANTED.keys())
def test_an_error_in_one_of_the_two_is_found(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], module: object, name: str, wrong: object
) -> None:
    """The comparison is worth something: each of these, planted in the reference, breaks it."""
    rates = schedule.rates_per_step
    if module is schedule:
        rates = wrong
    else:
        monkeypatch.setattr(module, name, wrong)
    with pytest.raises(Mismatch):
        compare(words, rates)
