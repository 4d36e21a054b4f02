"""PatchConvNet against a plain implementation of its paper."""

import pytest
import torch
from torch import nn

from deit_fast.infer.create import create_model
from tests.oracles.patchconvnet import patchconvnet_logits

pytestmark = pytest.mark.usefixtures("toys")


@pytest.mark.parametrize("name", ["patchconvnet", "class_tokens"])
def test_patchconvnet_is_its_papers(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, img_size=64, num_classes=5, layer_scale=1.0, init_std=0.2).eval()
    for param in model.parameters():
        nn.init.normal_(param, std=0.2)
    images = torch.randn(3, 3, 64, 64)
    expected = patchconvnet_logits(model.state_dict(), images, depth=3, class_tokens=name == "class_tokens")
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    assert model(torch.randn(2, 3, 48, 80)).shape == (2, 5)  # any grid
    model.train().set_grad_checkpointing()
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.forward_head(model.forward_features(images), pre_logits=True).shape == (3, 32)


def test_patchconvnet_has_the_references_names() -> None:
    keys = set(create_model("patchconvnet").state_dict())
    block = "norm1.weight attn.qkv_pos.0.weight attn.qkv_pos.2.bias attn.qkv_pos.4.conv_reduce.weight gamma_1"
    aggregation = (
        "norm1.weight attn.q.weight attn.k.bias attn.v.bias attn.proj.weight norm2.bias mlp.fc1.weight gamma_2"
    )
    wanted = {"cls_token", "patch_embed.proj.0.0.weight", "patch_embed.proj.6.0.weight", "norm.weight", "head.bias",
              *(f"blocks.2.{key}" for key in block.split()),
              *(f"blocks_token_only.0.{key}" for key in aggregation.split())}  # fmt: skip
    assert wanted <= keys
    assert len(keys) == 1 + 4 + 3 * 13 + 18 + 2 + 2
