"""Weights of timm's other models are refused in one line, and those that are ours compute what timm computes."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from deit_fast.convert.detect import load_weights
from deit_fast.convert.fit import build_initialised
from deit_fast.runtime.errors import RunError

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TINY = "deit_tiny_patch16_224"


def build(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **{"img_size": 32, "num_classes": 10} | arguments).eval()
    for param in model.parameters():
        nn.init.normal_(param, std=0.1)
    return model


def folder_of(folder: Path, name: str, model: nn.Module, **arguments: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    arguments = {"img_size": 32, "num_classes": 10} | arguments
    (folder / "config.json").write_text(json.dumps({"architecture": name, "model_args": arguments}))
    return folder


def our_logits(path: Path) -> torch.Tensor:
    weights = load_weights(path)
    with torch.no_grad():
        return build_initialised(weights.recipe.model, weights)[0].eval()(IMAGES)


@pytest.mark.parametrize(("name", "arguments"), [
    ("deit3_small_patch16_224", {}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("vit_tiny_patch16_224.augreg_in21k", {}),
    (TINY, {"act_layer": "gelu_tanh"}),
    (TINY, {"dynamic_img_size": True}),
    (TINY, {"drop_path_rate": 0.1, "drop_rate": 0.1, "attn_drop_rate": 0.1, "patch_drop_rate": 0.25}),
    (TINY, {"init_values": 0.5}),
    (TINY, {"no_embed_class": True, "init_values": 0.5}),
    (TINY, {"global_pool": "avg", "class_token": False, "fc_norm": False}),
    ("resmlp_12_224", {}),
    ("cait_xxs24_224", {}),
])  # fmt: skip
def test_what_is_ours_computes_the_same(name: str, arguments: dict, tmp_path: Path) -> None:
    model = build(name, **arguments)
    with torch.no_grad():
        expected = model(IMAGES)
    assert expected.std() > 0.01
    torch.testing.assert_close(our_logits(folder_of(tmp_path / "x", name, model, **arguments)), expected)


@pytest.mark.parametrize(("name", "arguments", "message"), [
    ("vit_small_patch16_rope_ape_224", {}, "architecture 'vit_small_patch16_rope_ape_224', which computes something "
     "else than deit3_small_patch16: the model is Eva, expected VisionTransformer"),
    ("vit_small_patch16_rope_224", {}, "has no pos_embed: .* is 'vit_small_patch16_rope_224'"),
    ("vit_small_patch16_rope_mixed_ape_224", {}, r"rope.freqs \[2, 12, 6, 32\], expected no such weight"),
    (TINY, {"act_layer": "quick_gelu"}, "blocks.0.mlp.act is QuickGELU, expected GELU"),
    (TINY, {"num_heads": 6}, "blocks.0.attn has num_heads=6, expected 3"),
    (TINY, {"global_pool": "avg", "fc_norm": False}, "the model has global_pool='avg', expected 'token'"),
    (TINY, {"global_pool": "avg"}, r"fc_norm.bias \[192\], expected no such weight"),
    (TINY, {"qk_norm": True}, "k_norm"),
    (TINY, {"pre_norm": True}, r"norm_pre.bias \[192\], expected no such weight"),
    (TINY, {"reg_tokens": 4}, "positions|reg_token"),
    (TINY, {"qkv_bias": False}, "attn.qkv.bias missing"),
    (TINY, {"img_size": [32, 64]}, "has a grid of 2 x 4 patches: expected a square one"),
    ("deit3_small_patch16_224", {"img_size": [32, 128]}, "has a grid of 2 x 8 patches: expected a square one"),
    ("resnet10t", {}, "its config.json's architecture is 'resnet10t'"),
])  # fmt: skip
def test_what_computes_something_else_is_named(name: str, arguments: dict, message: str, tmp_path: Path) -> None:
    model = timm.create_model(name) if name.startswith("resnet") else build(name, **arguments)
    with pytest.raises(RunError, match=message) as refusal:
        our_logits(folder_of(tmp_path / "x", name, model, **arguments))
    assert str(refusal.value).startswith(f"{tmp_path / 'x'}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("name", "arguments", "message"), [
    ("deit_from_tomorrow", {}, "'deit_from_tomorrow', which timm .* does not know"),
    (TINY, {"depth": 10**9}, "with depth=1000000000: expected 12, by the weights"),
    (TINY, {"wings": 2}, "with arguments that timm does not take"),
    (TINY, {"checkpoint_path": "/etc/passwd"}, "with arguments that timm does not take"),
])  # fmt: skip
def test_a_config_that_is_wrong_in_itself(name: str, arguments: dict, message: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", name, build(TINY), **arguments)
    with pytest.raises(RunError, match=message):
        load_weights(folder)
    with pytest.raises(RunError, match=message):  # the same file by its own name
        load_weights(folder / "model.safetensors")


def test_rotary_positions_without_a_config(tmp_path: Path) -> None:
    """They have no weights, but torch notes the modules in a state dict that is saved as it is."""
    model = build("vit_small_patch16_rope_ape_224")
    torch.save(model.state_dict(), tmp_path / "a.bin")
    torch.save({"model": model.state_dict()}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    for path in (tmp_path / "a.bin", tmp_path / "b.pth"):
        with pytest.raises(RunError, match="has the module 'rope', rotary positions: expected a model without"):
            load_weights(path)


def test_a_training_file_of_timm_names_its_model(tmp_path: Path) -> None:
    model = build(TINY, act_layer="quick_gelu")
    options = argparse.Namespace(model=TINY, model_kwargs={"act_layer": "quick_gelu"}, gp=None)
    torch.save({"state_dict": model.state_dict(), "arch": TINY, "args": options, "epoch": 1}, tmp_path / "a.pth.tar")
    with pytest.raises(RunError, match=r"has arch 'deit_tiny_patch16_224', .* blocks.0.mlp.act is QuickGELU"):
        load_weights(tmp_path / "a.pth.tar")
    options.model_kwargs = {}
    torch.save({"state_dict": model.state_dict(), "arch": TINY, "args": options, "epoch": 1}, tmp_path / "a.pth.tar")
    assert load_weights(tmp_path / "a.pth.tar").recipe.model.name == "deit_tiny_patch16"


@pytest.mark.parametrize("size", [(32, 64), (48, 80)])
def test_positions_that_may_be_of_no_square(size: tuple[int, int], tmp_path: Path) -> None:
    torch.save(build(TINY, img_size=size).state_dict(), tmp_path / "a.pth")
    with pytest.raises(RunError, match=rf"it may be {size[0] // 16} x {size[1] // 16} patches and a token"):
        load_weights(tmp_path / "a.pth")
