"""Weights in a model of another resolution, token layout or class count: what changes, and that it is said."""

import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from deit_fast.convert.detect import Weights, load_weights
from deit_fast.convert.fit import far_resolution, format_changes, load_fitted
from deit_fast.convert.imagenet21k import cut_head, pairs_to_1k
from deit_fast.infer.create import create_model
from deit_fast.recipe import get_recipe
from deit_fast.runtime.errors import RunError
from tests.oracles import foreign_checkpoints as oracle


def small(image: int | tuple[int, int] = 32, classes: int = 10, slot: bool = False, seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(img_size=image, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=classes,
                              no_embed_class=not slot, init_values=0.5).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def distilled(classes: int = 10, image: int = 32) -> VisionTransformer:
    torch.manual_seed(3)
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=image, patch_size=8, embed_dim=32, depth=2,
                              num_heads=2, num_classes=classes, init_values=0.5).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def bicubic(positions: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """As facebookresearch/deit: no antialiasing."""
    image = positions.detach().reshape(1, *old, -1).permute(0, 3, 1, 2)
    return F.interpolate(image, new, mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)


@pytest.mark.parametrize("slot", [False, True], ids=["patches", "class-slot"])
@pytest.mark.parametrize("image", [48, 24, (48, 32), (16, 48)])
def test_positions_are_resampled(image: int | tuple[int, int], slot: bool) -> None:
    source, target = small(32, slot=slot), small(image, slot=slot, seed=1)
    grid = target.patch_embed.grid_size
    changes = load_fitted(target, source.state_dict())
    assert changes == [("pos_embed", "resampled", "4 x 4", f"{grid[0]} x {grid[1]}")]
    extra = int(slot)
    assert torch.equal(target.pos_embed[:, :extra], source.pos_embed[:, :extra])
    torch.testing.assert_close(target.pos_embed[:, extra:].detach(), bicubic(source.pos_embed[:, extra:], (4, 4), grid))


def test_positions_of_a_known_oblong_grid() -> None:
    source, target = small((24, 40)), small(48, seed=1)
    with pytest.raises(RunError, match="pos_embed has 15 positions: expected those of a square"):
        load_fitted(target, source.state_dict())
    assert load_fitted(target, source.state_dict(), grid=(3, 5)) == [("pos_embed", "resampled", "3 x 5", "6 x 6")]
    torch.testing.assert_close(target.pos_embed.detach(), bicubic(source.pos_embed, (3, 5), (6, 6)))
    same = small((24, 40), seed=1)
    assert load_fitted(same, source.state_dict()) == []


@pytest.mark.parametrize(("has", "wants", "row"), [
    (True, False, ("cls_token", "folded", "a class slot in pos_embed", "added to the token")),
    (False, True, ("pos_embed", "padded", "no slots of tokens", "1 of zeros")),
])  # fmt: skip
def test_a_class_slot_moves_and_the_logits_stay(has: bool, wants: bool, row: tuple) -> None:
    source, target = small(slot=has), small(slot=wants, seed=1)
    assert load_fitted(target, source.state_dict()) == [row]
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(target(images), source(images), atol=1e-5, rtol=1e-5)


def test_a_distilled_model_becomes_plain() -> None:
    source, target = distilled(), small(slot=True)
    changes = load_fitted(target, source.state_dict())
    assert [change[:2] for change in changes] == [("dist_token", "dropped"), ("head_dist.weight", "dropped"),
                                                  ("head_dist.bias", "dropped"), ("pos_embed", "dropped")]  # fmt: skip
    assert torch.equal(target.pos_embed[:, 0], source.pos_embed[:, 0])
    assert torch.equal(target.pos_embed[:, 1:], source.pos_embed[:, 2:])
    assert torch.equal(target.head.weight, source.head.weight)


def test_a_plain_model_becomes_distilled() -> None:
    source, target = small(48, slot=True), distilled()
    own = {name: value.clone() for name, value in target.state_dict().items()}
    changes = load_fitted(target, source.state_dict())
    assert [change[:2] for change in changes] == [
        ("dist_token", "initialised"), ("head_dist.weight", "initialised"), ("head_dist.bias", "initialised"),
        ("pos_embed", "initialised"), ("pos_embed", "resampled"),
    ]  # fmt: skip
    assert torch.equal(target.dist_token, own["dist_token"])
    assert torch.equal(target.pos_embed[:, 0], source.pos_embed[:, 0])
    assert torch.equal(target.pos_embed[:, 1], own["pos_embed"][:, 1])
    torch.testing.assert_close(target.pos_embed[:, 2:].detach(), bicubic(source.pos_embed[:, 1:], (6, 6), (4, 4)))


def test_plain_deit3_becomes_distilled() -> None:
    source, target = small(), distilled()
    rows = load_fitted(target, source.state_dict())
    assert ("pos_embed", "padded", "no slots of tokens", "2 of zeros") in rows
    assert not target.pos_embed[:, :2].any()
    assert torch.equal(target.pos_embed[:, 2:], source.pos_embed)


def test_both_heads_of_a_distilled_model() -> None:
    source, target = distilled(10), distilled(5)
    own = target.head_dist.weight.detach().clone()
    rows = load_fitted(target, source.state_dict())
    assert rows == [(head, "initialised", "10 classes", "5 classes") for head in ("head", "head_dist")]
    assert torch.equal(target.head_dist.weight, own)


def test_no_head_at_all() -> None:
    source, target = small(), small(seed=1)
    headless = {name: value for name, value in source.state_dict().items() if not name.startswith("head")}
    assert load_fitted(target, headless) == [("head", "initialised", "none", "10 classes")]


def test_nothing_is_skipped_in_silence() -> None:
    source, target = small(), small(seed=1)
    for wrong in ({"extra.weight": torch.zeros(2)}, {"norm.weight": torch.zeros(7)}):
        with pytest.raises(RunError, match=f"another architecture: {next(iter(wrong))}"):
            load_fitted(target, source.state_dict() | wrong)
    missing = source.state_dict()
    del missing["blocks.1.norm2.bias"]
    with pytest.raises(RunError, match=r"blocks\.1\.norm2\.bias missing"):
        load_fitted(target, missing)


def test_the_table_has_a_line_for_each_row() -> None:
    lines = format_changes(load_fitted(small(48, classes=3), small().state_dict()))
    assert lines == ["pos_embed  resampled    4 x 4       6 x 6", "head       initialised  10 classes  3 classes"]
    assert format_changes([]) == []


def test_winter21_head_is_cut_by_the_999_pairs(shared_data: Path) -> None:
    table = json.loads((shared_data / "w21_to_in1k.json").read_text())
    weight, bias = torch.randn(19167, 8), torch.randn(19167)
    cut, cut_bias = cut_head(weight, bias)
    assert (len(table["src"]), cut.shape, cut_bias.shape) == (999, (1000, 8), (1000,))
    for large, label in zip(table["src"], table["dst"], strict=True):
        assert torch.equal(cut[label], weight[large])
        assert cut_bias[label] == bias[large]
    assert not cut[850].any()
    assert cut_bias[850] == -10


def test_winter21_pairs_know_each_class_once() -> None:
    large, small_ = zip(*pairs_to_1k(19167), strict=True)
    assert sorted(small_) == [label for label in range(1000) if label != 850]
    assert len(set(large)) == 999
    assert max(large) == 19141


@pytest.mark.parametrize("classes", [21841, 21843])
def test_fall11_heads_are_cut_by_synset(classes: int) -> None:
    """The lines of timm's own lists, read here as text: the same WordNet name on both sides."""
    folder = Path(timm.__file__).parent / "data" / "_info"
    large = {21841: "imagenet22k_synsets.txt", 21843: "imagenet21k_goog_synsets.txt"}[classes]
    names, labels = (folder / large).read_text().split(), (folder / "imagenet_synsets.txt").read_text().split()
    assert (len(names), labels[207], labels[850]) == (classes, "n02099601", "n04399382")  # golden retriever, teddy
    weight, bias = torch.arange(classes).float()[:, None].repeat(1, 2), torch.arange(classes).float()
    cut, cut_bias = cut_head(weight, bias)
    assert labels[850] not in names
    found = [names[int(row)] if row >= 0 else None for row in cut_bias]
    assert found == [name if label != 850 else None for label, name in enumerate(labels)]
    assert cut_bias[850] == -10
    assert torch.equal(cut[:850, 1], cut_bias[:850])
    assert not cut[850].any()


def test_a_21k_checkpoint_gets_its_1k_head(tmp_path: Path) -> None:
    weights = oracle.reference_weights(128, 4, 4, 8, 19167)
    torch.save({"model": weights}, tmp_path / "w21.pth")
    model = create_model("deit3_nano_patch4", img_size=32, num_classes=1000)
    loaded = load_weights(tmp_path / "w21.pth")
    assert loaded.recipe.model.num_classes == 19167
    assert load_fitted(model, loaded.tensors) == [("head", "mapped", "19167 classes", "999 of 1000 by name")]
    assert model.head.bias[850] == -10
    index = {label: large for large, label in pairs_to_1k(19167)}
    assert torch.equal(model.head.weight[7], weights["head.weight"][index[7]])
    other = create_model("deit3_nano_patch4", img_size=32, num_classes=999)
    assert load_fitted(other, loaded.tensors) == [("head", "initialised", "19167 classes", "999 classes")]


@pytest.mark.parametrize(
    ("old", "new", "far"),
    [(224, 384, ""), (224, 512, ""), (128, 224, ""), (160, 224, ""), (384, 224, ""), (224, 224, ""),
     (64, 224, "64 px (4 x 4 patches) and the model is of 224 px (14 x 14 patches): a factor of 3.5, "),
     (384, 112, "384 px (24 x 24 patches) and the model is of 112 px (7 x 7 patches): a factor of 3.4, ")],
)  # fmt: skip
def test_a_far_resolution_is_said(old: int, new: int, far: str) -> None:
    """Up to the steps of published finetuning nothing is said. Without positions nothing is resampled."""
    at = {size: get_recipe("deit3_small_1k_224", [f"model.image_size={size}"]) for size in (old, new)}
    weights = Weights({"pos_embed": torch.zeros(1, (old // 16) ** 2, 384)}, at[old], None)
    lines = far_resolution(at[new].model, weights)
    assert len(lines) == bool(far)
    assert all(far in line and f"nearer to {old}" in line and "\n" not in line for line in lines)
    assert far_resolution(at[new].model, Weights({}, at[old], None)) == []
