"""The fields of a recipe's model section, each against its definition in a paper or a reference."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from deit_fast.infer.create import create_model


@pytest.mark.parametrize("name", ["deit3_tiny_patch16", "deit_tiny_distilled_patch16", "cait_xxs24", "resmlp_12",
                                  "patchconvnet_s60"])  # fmt: skip
@pytest.mark.parametrize("std", [0.02, 0.002])
def test_initial_weights(name: str, std: float) -> None:
    torch.manual_seed(0)
    model = create_model(name, img_size=64, init_std=std)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module.weight.numel() > 5000]
    tokens = [param for key, param in model.named_parameters() if key in ("pos_embed", "cls_token", "dist_token")]
    for weight in [*(module.weight for module in linear), *tokens]:
        assert weight.std().item() == pytest.approx(std, rel=0.2)
        assert abs(weight.mean().item()) < 0.2 * std
    assert all(not module.bias.any() for module in linear if module.bias is not None)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:  # torch's own: uniform, 1 / sqrt(fan in)
            bound = (module.weight.shape[1] * module.weight[0, 0].numel()) ** -0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound


def test_fixed_positions() -> None:
    model = create_model("deit3_tiny_patch16", img_size=64, position="sincos", init_std=1e-9)
    table = model.pos_embed[0].reshape(4, 4, 192)
    assert not isinstance(table, nn.Parameter)
    for row, column, channel in ((0, 0, 3), (1, 3, 0), (2, 1, 47), (3, 2, 20)):
        frequency = 1 / 10000 ** (channel / 47)
        place = [f(p * frequency) for p in (column, row) for f in (math.sin, math.cos)]
        assert table[row, column, channel::48].tolist() == pytest.approx(place, abs=1e-5)
    slots = create_model("deit_tiny_distilled_patch16", img_size=64, position="sincos").pos_embed
    assert not slots[0, :2].any()
    assert torch.equal(slots[0, 2:], table.flatten(0, 1))
    assert "pos_embed" not in dict(model.named_parameters())
    timm.create_model("deit3_small_patch16_224", embed_dim=192, num_heads=3, img_size=64).load_state_dict(
        model.state_dict()
    )


def test_mean_pooling_is_after_the_norm_and_without_a_class_token() -> None:
    model = create_model("deit3_tiny_patch16", img_size=64, pool="avg", num_classes=7).eval()
    assert "cls_token" not in model.state_dict()
    nn.init.normal_(model.norm.weight)
    images = torch.randn(2, 3, 64, 64)
    tokens = model.blocks(model.patch_embed(images) + model.pos_embed)
    assert tokens.shape == (2, 16, 192)
    normed = F.layer_norm(tokens, (192,), model.norm.weight, model.norm.bias, 1e-6)
    torch.testing.assert_close(model(images), F.linear(normed.mean(1), model.head.weight, model.head.bias))
    assert create_model("deit_tiny_patch16", img_size=64, pool="avg").pos_embed.shape == (1, 16, 192)


@pytest.mark.parametrize(
    "name", ["deit3_nano_patch8", "deit3_small_18x2_patch16", "cait_xxs24", "resmlp_12", "patchconvnet_s60"]
)
def test_tanh_gelu(name: str) -> None:
    exact = create_model(name, img_size=16, num_classes=5, init_std=0.5).eval()
    approximate = create_model(name, img_size=16, num_classes=5, activation="gelu_tanh").eval()
    approximate.load_state_dict(exact.state_dict())
    images = 3 * torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected, found = exact(images), approximate(images)
    assert not torch.equal(expected, found)
    torch.testing.assert_close(expected, found, atol=0.05, rtol=0.05)


def test_mlp_stem() -> None:
    model = create_model("deit3_tiny_patch16", img_size=64, stem="hmlp").eval()
    stem = model.patch_embed
    quarter, dim = 48, 192
    convolutions = quarter * (3 * 16 + 1) + quarter * (4 * quarter + 1) + dim * (4 * quarter + 1)
    assert sum(p.numel() for p in stem.parameters()) == convolutions + 2 * (2 * quarter + dim)
    images = torch.randn(1, 3, 64, 64)
    changed = images.clone()
    changed[:, :, 16:32, 32:48] += 1  # patch (1, 2) of 4 x 4
    differs = (stem(images) != stem(changed)).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == [6]
    assert model(images).shape == (1, 1000)
