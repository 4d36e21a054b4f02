"""Every model of the zoo is known by its tensors, and goes to other formats and back."""

from pathlib import Path

import pytest
import timm
import torch

from deit_fast.convert.detect import load_weights
from deit_fast.convert.export import export_checkpoint
from deit_fast.convert.fit import initialise
from deit_fast.convert.infer import infer_model, read_shapes
from deit_fast.convert.names.facebook import to_facebook
from deit_fast.models.build import build_model
from deit_fast.recipe.sections import Model
from deit_fast.runtime.errors import RunError
from deit_fast.zoo import ARCHITECTURES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_sizes_and_classes_are_read_off(name: str) -> None:
    size = 96 if ARCHITECTURES[name].patch_size != 14 else 98
    with torch.device("meta"):
        model = build_model(Model(name=name, image_size=size, num_classes=7))
    section = infer_model(read_shapes(dict(model.state_dict())))
    expected = 224 if ARCHITECTURES[name].family == "patchconvnet" else size  # which has no positions
    assert (section.name, section.image_size, section.num_classes) == (name, expected, 7)
    assert (section.layer_scale, section.position, section.pool, section.stem) == ("auto", "learned", "token", "patch")


@pytest.mark.parametrize(("fields", "found"), [
    ({"stem": "hmlp"}, {"stem": "hmlp"}),
    ({"pool": "avg"}, {"pool": "avg"}),
    ({"layer_scale": None}, {"layer_scale": None}),
])  # fmt: skip
def test_variants_are_read_off(fields: dict, found: dict) -> None:
    model = build_model(Model(name="deit3_tiny_patch16", image_size=32, num_classes=7, **fields))
    section = infer_model(read_shapes(model.state_dict()))
    assert {key: getattr(section, key) for key in found} == found


# The smallest of each family, at a resolution of a few patches.
SMALLEST = {"deit3_nano_patch4": 24, "deit_tiny_patch16": 32, "deit_tiny_distilled_patch16": 32, "cait_xxs24": 32,
            "resmlp_12": 32, "patchconvnet_s60": 224, "patchconvnet_s60_multi": 224}  # fmt: skip


@pytest.mark.parametrize("name", SMALLEST)
def test_a_family_goes_out_and_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(Model(name=name, image_size=SMALLEST[name], num_classes=7)).eval()
    theirs = to_facebook(model.state_dict())
    if name == "patchconvnet_s60_multi":  # a layer for each class, patchconvnet_models.py
        assert theirs["head.6.weight"].shape == (1, 384)
        assert theirs["head.6.bias"].shape == (1,)
        assert "head.weight" not in theirs
    torch.save({"model": theirs}, tmp_path / "a.pth")
    if name.startswith("patchconvnet"):
        with pytest.raises(RunError, match="timm has no such model"):
            export_checkpoint(tmp_path / "a.pth", tmp_path / "folder")
        weights = load_weights(tmp_path / "a.pth")
    else:
        assert export_checkpoint(tmp_path / "a.pth", tmp_path / "folder").difference < 1e-5
        theirs = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
        images = torch.randn(2, 3, SMALLEST[name], SMALLEST[name])
        torch.testing.assert_close(theirs(images), model(images), atol=1e-5, rtol=1e-5)
        weights = load_weights(tmp_path / "folder" / "model.safetensors")
    assert weights.recipe.model.name == name
    assert all(torch.equal(weights.tensors[key], value) for key, value in model.state_dict().items())
    assert initialise(model, weights.tensors) == []
