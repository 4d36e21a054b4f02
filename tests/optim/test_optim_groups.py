"""What is trained, what decays, how fast each depth learns: against typed-in names, timm and plain arithmetic."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from deit_fast.infer.create import create_model
from deit_fast.optim.build import build_optimizer, freeze, parameter_groups
from deit_fast.recipe.sections import AdamWOptim, LambOptim, Optim, SGDOptim

BLOCK = {  # name: whether it decays, facebookresearch/deit through timm 0.3.2's add_weight_decay
    "norm1.weight": False, "norm1.bias": False, "attn.qkv.weight": True, "attn.qkv.bias": False,
    "attn.proj.weight": True, "attn.proj.bias": False, "ls1.gamma": False, "norm2.weight": False, "norm2.bias": False,
    "mlp.fc1.weight": True, "mlp.fc1.bias": False, "mlp.fc2.weight": True, "mlp.fc2.bias": False, "ls2.gamma": False,
}  # fmt: skip
AROUND = {
    "cls_token": False, "pos_embed": False, "patch_embed.proj.weight": True, "patch_embed.proj.bias": False,
    "norm.weight": False, "norm.bias": False, "head.weight": True, "head.bias": False,
}  # fmt: skip


def nano() -> nn.Module:
    torch.manual_seed(0)
    return create_model("deit3_nano_patch4", img_size=16, num_classes=5)


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def by_name(model: nn.Module, groups: list[dict], key: str) -> dict[str, float]:
    values = {id(param): group[key] for group in groups for param in group["params"]}
    return {name: values[id(param)] for name, param in model.named_parameters() if id(param) in values}


def give_gradients(model: nn.Module, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        noise = scale * torch.randn(param.shape, generator=generator)
        param.grad = noise if param.requires_grad else None


def test_what_decays() -> None:
    expected = AROUND | {f"blocks.{i}.{name}": decays for i in range(4) for name, decays in BLOCK.items()}
    model = nano()
    groups = parameter_groups(model, 0.05)
    assert [(group["weight_decay"], group["lr_scale"]) for group in groups] == [(0.0, 1.0), (0.05, 1.0)]
    assert by_name(model, groups, "weight_decay") == {name: 0.05 * decays for name, decays in expected.items()}


def test_the_distillation_token_does_not_decay() -> None:
    """The reference decays it, because its list of exceptions is the plain model's; timm does not."""
    model = on_meta("deit_tiny_distilled_patch16_224")
    decays = by_name(model, parameter_groups(model, 0.05), "weight_decay")
    assert decays["dist_token"] == decays["cls_token"] == decays["pos_embed"] == decays["head_dist.bias"] == 0
    assert decays["head_dist.weight"] == decays["patch_embed.proj.weight"] == 0.05


def test_layers_by_hand() -> None:
    """Four blocks: the patches' embedding learns at 0.5^5 of the head's rate, the last block and the norm at half."""
    model = nano()
    scales = by_name(model, parameter_groups(model, 0.05, 0.5), "lr_scale")
    powers = {"cls_token": 5, "pos_embed": 5, "patch_embed.proj.weight": 5, "blocks.0.norm1.weight": 4,
              "blocks.2.attn.qkv.weight": 2, "blocks.3.ls2.gamma": 1, "norm.bias": 1, "head.weight": 0}  # fmt: skip
    assert {name: scales[name] for name in powers} == {name: 0.5**power for name, power in powers.items()}


@pytest.mark.parametrize(
    "name",
    ["deit3_small_patch16_224", "deit3_huge_patch14_224", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224",
     "cait_xxs24_224", "resmlp_12_224", "vit_small_patch16_18x2_224"],
)  # fmt: skip
@pytest.mark.parametrize("layer_decay", [0.65, 1.0])
def test_layers_are_timms(name: str, layer_decay: float) -> None:
    model = on_meta(name)
    theirs = param_groups_layer_decay(model, layer_decay=layer_decay)
    scales = by_name(model, parameter_groups(model, 0.05, layer_decay), "lr_scale")
    assert scales == pytest.approx(by_name(model, theirs, "lr_scale"))
    assert set(scales) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", [LambOptim, AdamWOptim, SGDOptim])
def test_a_step_of_each_depth_is_as_long_as_its_scale(kind: type[Optim]) -> None:
    models = nano(), nano()
    start = [p.detach().clone() for p in models[0].parameters()]
    for model, layer_decay in zip(models, (None, 0.5), strict=True):
        section = kind(lr=1e-2, layer_decay=layer_decay)
        optimizer = build_optimizer(section, model)
        for group in optimizer.param_groups:
            group["lr"].fill_(3e-2 * group["lr_scale"])
        give_gradients(model, 0)
        optimizer.step()
    scales = by_name(models[1], parameter_groups(models[1], 0.05, 0.5), "lr_scale")
    triples = zip(models[0].named_parameters(), models[1].parameters(), start, strict=True)
    for (param, plain), scaled, begin in triples:
        torch.testing.assert_close(scaled - begin, scales[param] * (plain - begin), rtol=1e-4, atol=1e-6)
        assert (plain - begin).abs().max() > 1e-4


def test_a_checkpoint_keeps_each_depths_rate() -> None:
    model = nano()
    section = LambOptim(lr=1e-2, layer_decay=0.5)
    optimizer, other = build_optimizer(section, model), build_optimizer(section, nano())
    give_gradients(model, 0)
    optimizer.step()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for mine, theirs in zip(other.param_groups, optimizer.param_groups, strict=True):
        assert mine["lr_scale"] == theirs["lr_scale"]
        assert torch.equal(mine["lr"], theirs["lr"])
    assert len({group["lr_scale"] for group in other.param_groups}) == 6


TRAINED = {"attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"}


def test_attention_only_trains_what_the_reference_does() -> None:
    expected = {f"blocks.{i}.{name}" for i in range(4) for name in TRAINED} | {"pos_embed", "head.weight", "head.bias"}
    model = nano()
    freeze(model, LambOptim(lr=1.0))
    assert all(param.requires_grad for param in model.parameters())
    freeze(model, LambOptim(lr=1.0, trainable="attention"))
    assert {name for name, param in model.named_parameters() if param.requires_grad} == expected
    distilled = on_meta("deit_tiny_distilled_patch16_224")
    freeze(distilled, LambOptim(lr=1.0, trainable="attention"))
    assert not any(param.requires_grad for name, param in distilled.named_parameters() if "dist" in name)


@pytest.mark.parametrize("kind", [LambOptim, AdamWOptim, SGDOptim])
def test_frozen_weights_and_their_averages_stay(kind: type[Optim]) -> None:
    model = nano()
    ema = copy.deepcopy(model).requires_grad_(False)
    start = copy.deepcopy(model.state_dict())
    section = kind(lr=1e-2, trainable="attention", ema_decay=0.5, layer_decay=0.9)
    optimizer = build_optimizer(section, model, ema)
    for _ in range(2):
        model(torch.randn(2, 3, 16, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    means = dict(ema.named_parameters())
    for key, param in model.named_parameters():
        assert torch.equal(param, start[key]) != param.requires_grad, key
        assert torch.equal(means[key], start[key]) != param.requires_grad, key


@pytest.mark.parametrize("max_grad_norm", [None, 1.0, 1e4])
@pytest.mark.parametrize(("kind", "own"), [(AdamWOptim, {"betas": (0.8, 0.99)}), (SGDOptim, {"momentum": 0.8})])
def test_equals_torchs_optimizer_after_clipping(
    kind: type[Optim], own: dict[str, Any], max_grad_norm: float | None
) -> None:
    ours, theirs = nano(), nano()
    section = kind.model_validate({"lr": 1e-2, "weight_decay": 0.1, "max_grad_norm": max_grad_norm, **own})
    optimizer = build_optimizer(section, ours)
    decays = by_name(theirs, parameter_groups(theirs, 0.1), "weight_decay")
    groups = [
        {"params": [p for n, p in theirs.named_parameters() if decays[n] == decay], "weight_decay": decay}
        for decay in (0.0, 0.1)
    ]
    reference: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.99), eps=1e-8, foreach=False)
    if kind is SGDOptim:
        reference = torch.optim.SGD(groups, lr=1e-2, momentum=0.8, nesterov=True, foreach=False)
    for step in range(5):
        give_gradients(ours, step, 0.1)
        give_gradients(theirs, step, 0.1)
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm or float("inf"))
        reference.step()
        optimizer.step()
        assert optimizer.grad_norm.item() == pytest.approx(norm.item(), rel=1e-6)
    for mine, plain in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-6)


def test_sgd_without_momentum() -> None:
    model = nn.Linear(3, 2)
    start = model.weight.detach().clone()
    optimizer = build_optimizer(SGDOptim(lr=0.5, weight_decay=0.1, momentum=0.0, max_grad_norm=None), model)
    give_gradients(model, 0)
    optimizer.step()
    assert model.weight.grad is not None
    torch.testing.assert_close(model.weight.detach(), start - 0.5 * (model.weight.grad + 0.1 * start))
    assert not optimizer.state


@pytest.mark.parametrize("kind", [LambOptim, AdamWOptim, SGDOptim])
def test_hooks_of_a_step_run_once_whatever_was_made_before(kind: type[Optim]) -> None:
    """FSDP's gradients are handed over in one: run twice, it would hand over none."""
    for plain in (torch.optim.AdamW, torch.optim.SGD):
        plain([nn.Parameter(torch.zeros(1))], lr=1.0)  # from here on its step calls the hooks as well
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(kind(lr=1e-2), model)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    give_gradients(model, 0)
    optimizer.step()
    assert seen == ["before", "after"]
