import ast
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

import deit_fast
from deit_fast.infer.create import create_model
from deit_fast.models.build import families
from deit_fast.runtime.errors import RecipeError
from deit_fast.zoo import ARCHITECTURES, FAMILIES
from tests.conftest import ROOT

# SPEC of facebookresearch/deit models_v2.py at 224 px, 1000 classes, in millions.
PUBLISHED_PARAMS = {"tiny_patch16": 5.72, "small_patch16": 22.06, "medium_patch16": 38.85, "base_patch16": 86.59,
                    "large_patch16": 304.37, "huge_patch14": 632.13}  # fmt: skip


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_PARAMS.items())
def test_published_parameter_counts(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = create_model(f"deit3_{name}")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_weights_and_logits_are_timms() -> None:
    """Our weights in timm's model of the published name give the same logits: state dicts interchange."""
    ours = create_model("deit3_small_patch16").eval()
    theirs = timm.create_model("deit3_small_patch16_224").eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_stochastic_depth_is_the_same_in_every_block() -> None:
    model = create_model("deit3_nano_patch4", img_size=32, drop_path=0.3)
    rates = [path.drop_prob for block in model.blocks for path in (block.drop_path1, block.drop_path2)]
    assert rates == [0.3] * (2 * ARCHITECTURES["deit3_nano_patch4"].depth)
    assert not any(isinstance(m, DropPath) for m in create_model("deit3_nano_patch4", img_size=32).modules())


def test_initialisation_is_the_references() -> None:
    torch.manual_seed(0)
    model = create_model("deit3_small_patch16", layer_scale=1e-4)
    for block in model.blocks:
        assert torch.all(block.ls1.gamma == 1e-4)
        assert torch.all(block.ls2.gamma == 1e-4)
    for weight in (model.cls_token, model.pos_embed, model.head.weight, model.blocks[3].mlp.fc1.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert all(torch.all(m.bias == 0) for m in model.modules() if isinstance(m, nn.Linear))
    assert model.norm.eps == 1e-6


def test_no_layer_scale() -> None:
    assert not any(
        "gamma" in name for name, _ in create_model("deit3_nano_patch4", layer_scale=None).named_parameters()
    )


def test_huge_at_160_cuts_the_border_as_the_reference() -> None:
    with torch.device("meta"):
        model = create_model("deit3_huge_patch14", img_size=160)
        assert model.pos_embed.shape == (1, 11 * 11, 1280)
        assert model(torch.empty(1, 3, 160, 160)).shape == (1, 1000)


def test_python_api() -> None:
    assert "deit3_base_1k_192" in deit_fast.list_recipes()
    model = deit_fast.create_model("deit3_tiny_patch16", img_size=64, num_classes=7, drop_path=0.1)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    with pytest.raises(RecipeError, match="did you mean 'deit3_tiny_patch16'"):
        deit_fast.create_model("deit3_tny_patch16")


FAMILY_FOLDERS = ("deit_fast/zoo/families", "deit_fast/models")


@pytest.mark.parametrize("path", [
    path for folder in ("deit_fast", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))
    if str(path.parent.relative_to(ROOT)) not in FAMILY_FOLDERS
], ids=lambda path: str(path.relative_to(ROOT)))  # fmt: skip
def test_no_family_is_named_elsewhere(path: Path) -> None:
    """What depends on the family is the family's to say: neither by its name, nor by the class of its model."""
    tree = ast.parse(path.read_text())
    named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} & FAMILIES.keys()
    assert not named
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    classes = {name for name in modules if name.startswith(("timm.models.", "deit_fast.models."))}
    allowed = {"build", "cost", "recompute", "state_dicts", "stochastic_depth"}
    if path == ROOT / "benchmarks" / "peers.py":  # which trains timm's own model
        allowed.add("vision_transformer")
    assert {name.rpartition(".")[2] for name in classes} <= allowed


def test_a_family_is_in_both_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(families()) == list(FAMILIES)
    everywhere = {
        path.stem for path in (ROOT / "deit_fast" / "models").glob("*.py") if "\nFAMILY = " in path.read_text()
    }
    assert everywhere == set(FAMILIES)
    assert list(FAMILIES)[:5] == ["deit3", "deit", "cait", "resmlp", "patchconvnet"]
    monkeypatch.setitem(FAMILIES, "unbuilt", FAMILIES["cait"])
    with pytest.raises(
        TypeError, match=r"unbuilt: expected a family in deit_fast\.models and deit_fast\.zoo\.families"
    ):
        families.__wrapped__()
