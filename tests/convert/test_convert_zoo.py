"""Every model of the zoo is known by its tensors, and goes to other formats and back."""

from pathlib import Path

import pytest
import timm
import torch

from deit_fast.convert.detect import load_weights
from deit_fast.convert.export import export_checkpoint
from deit_fast.convert.fit import load_fitted
from deit_fast.convert.names.facebook import to_facebook
from deit_fast.convert.recognise import describe_weights, infer_model
from deit_fast.models.build import build_model, family_of
from deit_fast.recipe.sections import Model
from deit_fast.runtime.errors import RunError
from deit_fast.zoo import ARCHITECTURES, find_architecture, find_family
from tests.toys import TOYS

pytestmark = pytest.mark.usefixtures("toys")


@pytest.mark.parametrize("name", [*ARCHITECTURES, *TOYS])
def test_names_sizes_and_classes_are_read_off(name: str) -> None:
    size = 96 if find_architecture(name).patch_size != 14 else 98
    weights, larger = (describe_weights(Model(name=name, image_size=side, num_classes=7)) for side in (size, 2 * size))
    section = infer_model(weights)
    fixed = all(weights[key].shape == larger[key].shape for key in weights)  # nothing tells the resolution
    assert (section.name, section.image_size, section.num_classes) == (name, 224 if fixed else size, 7)
    assert (section.layer_scale, section.position, section.pool, section.stem) == ("auto", "learned", "token", "patch")


@pytest.mark.parametrize(("fields", "found"), [
    ({"stem": "hmlp"}, {"stem": "hmlp"}),
    ({"pool": "avg"}, {"pool": "avg"}),
    ({"layer_scale": None}, {"layer_scale": None}),
])  # fmt: skip
def test_variants_are_read_off(fields: dict, found: dict) -> None:
    model = build_model(Model(name="deit3_tiny_patch16", image_size=32, num_classes=7, **fields))
    section = infer_model(model.state_dict())
    assert {key: getattr(section, key) for key in found} == found


@pytest.mark.parametrize("name", [*TOYS, "resmlp_12"])  # of whose sizes timm has no other
def test_a_family_goes_out_and_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    section = Model(name=name, image_size=224 if find_architecture(name).patch_size == 16 else 32, num_classes=7)
    model = build_model(section).eval()
    theirs = to_facebook(model.state_dict())
    if name == "class_tokens":  # a layer for each class, patchconvnet_models.py
        assert theirs["head.6.weight"].shape == (1, 32)
        assert theirs["head.6.bias"].shape == (1,)
        assert "head.weight" not in theirs
    torch.save({"model": theirs}, tmp_path / "a.pth")
    weights = load_weights(tmp_path / "a.pth")
    assert weights.recipe.model == section
    assert weights.recipe.data.eval_crop_ratio == find_family(name).eval_crop_ratio
    if family_of(name).timm_model(find_architecture(name), section) is None:
        with pytest.raises(RunError, match="timm has no such model"):
            export_checkpoint(tmp_path / "a.pth", tmp_path / "folder")
    else:
        assert export_checkpoint(tmp_path / "a.pth", tmp_path / "folder").difference < 1e-5
        theirs = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
        images = torch.randn(2, 3, section.image_size, section.image_size)
        torch.testing.assert_close(theirs(images), model(images), atol=1e-5, rtol=1e-5)
        weights = load_weights(tmp_path / "folder" / "model.safetensors")
    assert weights.recipe.model.name == name
    assert all(torch.equal(weights.tensors[key], value) for key, value in model.state_dict().items())
    assert load_fitted(model, weights.tensors) == []


def test_timm_lacks_patchconvnet_alone() -> None:
    lacking = {
        name
        for name, entry in ARCHITECTURES.items()
        if name not in TOYS and family_of(name).timm_model(entry, Model(name=name, image_size=224)) is None
    }
    assert lacking == {name for name in ARCHITECTURES if name.startswith("patchconvnet_")}
