"""LAMB, clipping and moving average of our step against timm's, torch's and apex's, and the bytes they must move."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from deit_fast.models.cost import count_parameters
from deit_fast.optim.build import build_optimizer
from deit_fast.optim.compute_copy import copy_to_compute
from deit_fast.recipe.schema import Recipe
from deit_fast.training.step import TrainStep

from .measure import Row, Session, Timing, copy_case, free_memory, interleave
from .peers import timm_lamb
from .workload import TINY, build_step, find_recipe

MODELS = {"cuda": ["deit3_small_patch16", "deit3_base_patch16", "deit3_large_patch16", "deit3_huge_patch14"],
          "cpu": ["deit3_small_patch16"]}  # fmt: skip
FLOORS = {
    "lamb_clip": 44,  # two passes over gradient, weight and moments, and one over the gradient for its norm
    "lamb_clip_ema": 52,  # also reads and writes the average
    "lamb_clip_ema_copy": 54,  # also writes a bf16 copy of the weights
    "lamb_clip_ema_copy_bf16_gradient": 50,  # and reads a bf16 gradient in both passes
}
"""Bytes per parameter that each case has to move."""


def run(session: Session, models: list[str] | None) -> None:
    """One row for the parameter shapes of each model."""
    device = session.device
    models = models or ([TINY] if session.quick and device.type == "cpu" else MODELS[device.type])
    session.settings = {"bytes_per_parameter": FLOORS, "learning_rate": 1e-3}
    copy_call, copied = copy_case(device, session.quick)
    for word in models:
        if session.out_of_time(word):
            continue
        session.add(_measure(session, word, copy_call, copied))
        free_memory()


def _measure(session: Session, word: str, copy_call: Callable[[], object], copied: int) -> Row:
    device = session.device
    recipe = find_recipe(word, 2, ["model.drop_path=0"])
    count = count_parameters(recipe.model)
    session.say(f"{word}: {count / 1e6:.1f} M parameters")
    step = build_step(recipe, device)
    cases = {"copy": copy_call, **_cases(step)}
    timed, errors = _time(session, cases, word)
    bandwidth = copied / timed["copy"].seconds["median"]
    floors = {name: 1e3 * size * count / bandwidth for name, size in FLOORS.items()}
    milliseconds = {
        name: {key: value * (1 if key == "repeats" else 1e3) for key, value in timing.seconds.items()}
        for name, timing in timed.items()
    }
    ours, alone = milliseconds["ours"]["median"], milliseconds["ours_without_ema"]["median"]
    copying = milliseconds["ours_copy"]["median"]
    ratios = {
        f"{peer}_over_ours": milliseconds[peer]["median"] / own
        for peer, own in (
            ("timm_lamb_ema", ours),
            ("timm_lamb", alone),
            ("adamw_fused", alone),
            ("adamw_fused_ema", ours),
            ("apex_lamb", alone),
            ("apex_lamb_ema", ours),
        )
        if peer in milliseconds
    }
    return {
        "model": recipe.model.name,
        "params_m": count / 1e6,
        "tensors": len(list(step.state.model.parameters())),
        "copy_gb_per_second": bandwidth / 1e9,
        "milliseconds": milliseconds,
        "floor_milliseconds": floors,
        "ours_over_floor": {
            name: time / floors[name]
            for name, time in (
                ("lamb_clip", alone),
                ("lamb_clip_ema", ours),
                ("lamb_clip_ema_copy", copying),
                ("lamb_clip_ema_copy_bf16_gradient", copying),
            )
        },
        "ratios": ratios,
        "errors": errors,
    }


def time_steps(session: Session, recipe: Recipe, peers: list[str]) -> dict[str, Timing]:
    """Time of our step, with and without its average, and of some peers' steps."""
    cases = _cases(build_step(recipe, session.device))
    chosen = {name: cases[name] for name in ("ours", "ours_without_ema", *peers)}
    timed, errors = _time(session, chosen, recipe.model.name)
    if errors:
        raise RuntimeError(str(errors))
    return timed


def _time(session: Session, cases: dict[str, Callable[[], Any]], word: str) -> tuple[dict[str, Timing], dict[str, str]]:
    return interleave(
        cases, session.device, session.say, repeats=session.repeats, warmup=3, seconds=session.seconds(0.1, 0.5),
        known=lambda name, timing: session.note(f"{word} {name}", 1e3 * timing.seconds["median"], "ms"),
    )  # fmt: skip


def _cases(step: TrainStep) -> dict[str, Callable[[], Any]]:
    """Our optimizer and the peers' optimizers, on the step's weights with random gradients."""
    optim, device = step.recipe.optim, step.world.device
    generator = torch.Generator(device).manual_seed(0)
    for param in step.state.model.parameters():
        param.grad = torch.randn(param.shape, device=device, generator=generator) * 1e-3
    without_ema = build_optimizer(optim, step.state.model)
    _, copies = copy_to_compute(step.state.model)
    for weight, rounded in copies.items():
        assert weight.grad is not None
        rounded.grad = weight.grad.bfloat16()
    with_copy = build_optimizer(optim, step.state.model, step.state.ema, copies=copies)
    ours = {"ours": step.state.optimizer.step, "ours_without_ema": without_ema.step, "ours_copy": with_copy.step}
    return {**ours, **_peers(step, optim.ema_decay)}


def _peers(step: TrainStep, ema_decay: float | None) -> dict[str, Callable[[], Any]]:
    """The peers' optimizers on their own model with the same weights and gradients, with and without average."""
    section = step.recipe.optim

    def clone() -> nn.Module:
        model = copy.deepcopy(step.state.model)
        for mine, theirs in zip(model.parameters(), step.state.model.parameters(), strict=True):
            assert theirs.grad is not None
            mine.grad = theirs.grad.clone()
        return model

    def with_ema(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        average = ModelEmaV3(model, decay=ema_decay or 0.0)

        def both() -> None:
            optimizer.step()
            average.update(model)

        return both

    timm_model = clone()
    timm = timm_lamb(timm_model, section)
    adamw_model = clone()
    adamw = torch.optim.AdamW(adamw_model.parameters(), lr=section.lr, weight_decay=section.weight_decay, fused=True)
    cases: dict[str, Callable[[], Any]] = {
        "timm_lamb": timm.step,
        "timm_lamb_ema": with_ema(timm_model, timm),
        "adamw_fused": adamw.step,
        "adamw_fused_ema": with_ema(adamw_model, adamw),
    }
    try:
        from apex.optimizers import FusedLAMB
    except Exception:  # apex without its CUDA extensions may raise anything
        return cases
    apex_model = clone()
    apex = FusedLAMB(apex_model.parameters(), lr=section.lr, weight_decay=section.weight_decay)
    cases["apex_lamb"] = apex.step
    cases["apex_lamb_ema"] = with_ema(apex_model, apex)
    return cases
