import pickle
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from deit_fast.checkpoint.format import (
    link_checkpoint,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from deit_fast.convert.detect import load_weights
from deit_fast.convert.fit import load_fitted
from deit_fast.infer.create import create_model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError

CPU = torch.device("cpu")
RECIPE = get_recipe("demo_pretrain", ["model.image_size=32"])


def state(**fields) -> dict:
    torch.manual_seed(0)
    model = create_model("deit3_nano_patch4", img_size=32, num_classes=10)
    recipe = RECIPE.model_dump(mode="json")
    return {"model": model.state_dict(), "ema": None, "recipe": recipe, "step": 3, **fields}


def test_round_trip_and_both_files(tmp_path: Path) -> None:
    content = state()
    save_checkpoint(tmp_path / "last.pt", content)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "last.safetensors", "last.sha256"]
    loaded = load_checkpoint(tmp_path / "last.pt", CPU)
    assert loaded["step"] == 3
    for suffix in (".pt", ".safetensors"):
        weights = load_weights(tmp_path / f"last{suffix}")
        assert weights.recipe == RECIPE
        assert all(torch.equal(weights.tensors[k], v) for k, v in content["model"].items())


def test_safetensors_load_into_timm(tmp_path: Path) -> None:
    ours = create_model("deit3_small_patch16", img_size=64, num_classes=11).eval()
    recipe = get_recipe("deit3_small_1k_224", ["model.image_size=64", "model.num_classes=11"])
    save_checkpoint(tmp_path / "last.pt", {"model": ours.state_dict(), "recipe": recipe.model_dump(mode="json")})
    theirs = timm.create_model(
        "deit3_small_patch16_224", img_size=64, num_classes=11, checkpoint_path=str(tmp_path / "last.safetensors")
    ).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "last.pt", state(step=1))

    def full_disk(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(RunError, match=r"last\.pt: cannot be written .*No space"):
        save_checkpoint(tmp_path / "last.pt", state(step=2))
    assert load_checkpoint(tmp_path / "last.pt", CPU)["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "last.safetensors", "last.sha256"]


def test_best_is_kept_when_last_moves_on(tmp_path: Path) -> None:
    digests = write_checkpoint(tmp_path / "last.pt", state(step=1))
    link_checkpoint(tmp_path / "last.pt", tmp_path / "best.pt", digests)
    save_checkpoint(tmp_path / "last.pt", state(step=2))
    assert load_checkpoint(tmp_path / "best.pt", CPU)["step"] == 1
    assert load_weights(tmp_path / "best.safetensors").recipe.name == "demo_pretrain"
    verify_checkpoint(tmp_path / "best.pt")


class _Evil:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "code", "foreign", "absent"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_bad_files_are_one_line(tmp_path: Path, damage: str, suffix: str, capsys) -> None:
    save_checkpoint(tmp_path / "x.pt", state())
    path = tmp_path / f"x{suffix}"
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(b"\x93" * 5000)
    elif damage == "code":
        path.write_bytes(pickle.dumps(_Evil()))
    elif damage == "foreign" and suffix == ".pt":
        torch.save({"model": {}}, path)
    elif damage == "foreign":
        save_file({"a": torch.zeros(1)}, path)
    else:
        path.unlink()
    with pytest.raises(RunError) as error:
        load_weights(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert "code from" not in capsys.readouterr().out


def test_another_resolution_resamples_positions() -> None:
    source = create_model("deit3_nano_patch4", img_size=32, num_classes=10)
    target = create_model("deit3_nano_patch4", img_size=48, num_classes=10)
    changes = load_fitted(target, source.state_dict())
    assert changes == [("pos_embed", "resampled", "8 x 8", "12 x 12")]
    grid = source.pos_embed.detach().reshape(1, 8, 8, -1).permute(0, 3, 1, 2)
    # facebookresearch/deit: no antialiasing. timm's would differ by 0.007 here.
    expected = F.interpolate(grid, (12, 12), mode="bicubic", align_corners=False)
    torch.testing.assert_close(target.pos_embed.detach(), expected.permute(0, 2, 3, 1).reshape(1, 144, -1))
    assert torch.equal(target.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


def test_another_class_count_gets_a_new_head() -> None:
    source = create_model("deit3_nano_patch4", img_size=32, num_classes=10)
    target = create_model("deit3_nano_patch4", img_size=32, num_classes=3)
    head = target.head.weight.detach().clone()
    assert load_fitted(target, source.state_dict()) == [("head", "initialised", "10 classes", "3 classes")]
    assert torch.equal(target.head.weight, head)
    assert torch.equal(target.cls_token, source.cls_token)
    assert load_fitted(create_model("deit3_nano_patch4", img_size=32, num_classes=10), source.state_dict()) == []


def test_another_architecture_is_refused() -> None:
    source = create_model("deit3_tiny_patch16", img_size=32, num_classes=10)
    with pytest.raises(RunError, match="another architecture"):
        load_fitted(create_model("deit3_nano_patch4", img_size=32, num_classes=10), source.state_dict())
    plain = create_model("deit3_nano_patch4", img_size=32, num_classes=10, layer_scale=None)
    with pytest.raises(RunError, match=r"gamma missing"):
        load_fitted(create_model("deit3_nano_patch4", img_size=32, num_classes=10), plain.state_dict())
