"""Every written format is read by its own reader: timm, onnxruntime, torch.export, and the layouts' oracles."""

import json
from pathlib import Path

import msgpack
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from deit_fast.checkpoint.format import save_checkpoint
from deit_fast.cli.main import main
from deit_fast.convert.detect import load_weights
from deit_fast.convert.export import choose_format, export_checkpoint
from deit_fast.infer.evaluate import evaluate_checkpoint
from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError
from tests.oracles import foreign_checkpoints as oracle
from tests.oracles.foreign_checkpoints import DEIT, DEIT3, DISTILLED

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
MODELS = {"deit3": (DEIT3, 4), "deit": (DEIT, 3), "distilled": (DISTILLED, 3)}


def source(folder: Path, name: str = "deit3") -> Path:
    path = folder / "source.pth"
    torch.save({"model": MODELS[name][0]}, path)
    return path


def close(logits: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_for_timm(tmp_path: Path, name: str) -> None:
    written = export_checkpoint(source(tmp_path, name), tmp_path / "folder")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    model = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    with torch.no_grad():
        close(model(IMAGES), oracle.reference_logits(MODELS[name][0], IMAGES, MODELS[name][1]))
    assert (written.format, written.difference, written.changes) == ("timm", 0, [])
    config = timm.data.resolve_model_data_config(model)
    assert tuple(config["input_size"]) == (3, 32, 32)
    assert config["crop_pct"] == (1.0 if name == "deit3" else 0.875)
    assert tuple(config["mean"]) == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", MODELS)
def test_facebook_and_back_bit_by_bit(tmp_path: Path, name: str) -> None:
    export_checkpoint(source(tmp_path, name), tmp_path / "x.safetensors")
    written = export_checkpoint(tmp_path / "x.safetensors", tmp_path / "back.pth")
    assert written.difference == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert back.keys() == MODELS[name][0].keys()
    assert all(torch.equal(back[key], value) for key, value in MODELS[name][0].items())


def arrays(data: bytes) -> dict:
    def unpack(code: int, content: bytes) -> np.ndarray:
        shape, name, raw = msgpack.unpackb(content, raw=True)
        return np.frombuffer(raw, name.decode()).reshape(shape)

    return msgpack.unpackb(data, ext_hook=unpack)


def flat(tree: dict, prefix: str = "") -> dict[str, np.ndarray]:
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_deit3_jax_and_back_bit_by_bit(tmp_path: Path) -> None:
    tree = oracle.jax_tree(128, 4, 4, 4, 8, 10)
    (tmp_path / "a.msgpack").write_bytes(oracle.flax_bytes(tree))
    export_checkpoint(tmp_path / "a.msgpack", tmp_path / "b.safetensors")
    written = export_checkpoint(tmp_path / "b.safetensors", tmp_path / "c.msgpack")
    assert (written.difference, written.notes) == (0, [])
    found, expected = flat(arrays((tmp_path / "c.msgpack").read_bytes())), flat(tree)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], value) and found[key].dtype == value.dtype for key, value in expected.items())


def test_deit3_jax_of_deit3_has_all_its_positions(tmp_path: Path) -> None:
    written = export_checkpoint(source(tmp_path), tmp_path / "x.msgpack")
    tree = arrays((tmp_path / "x.msgpack").read_bytes())
    assert np.array_equal(tree["model"]["embed"]["wpe"].reshape(64, 128), DEIT3["pos_embed"][0])
    assert written.notes == ["deit3-jax computes GELU by its tanh approximation, this model exactly"]
    assert 0 < written.difference < 1e-2
    close(torch.from_numpy(oracle.jax_logits(tree, IMAGES.permute(0, 2, 3, 1).numpy())),
          oracle.reference_logits(DEIT3, IMAGES, 4, "tanh"))  # fmt: skip


def test_deit3_jax_of_deit_has_the_class_slot_in_its_token(tmp_path: Path) -> None:
    export_checkpoint(source(tmp_path, "deit"), tmp_path / "x.msgpack")
    tree = arrays((tmp_path / "x.msgpack").read_bytes())
    assert tree["model"]["embed"]["wpe"].shape == (2, 2, 192)
    for index in range(12):  # the oracle multiplies by LayerScale, which DeiT has not
        tree["model"][f"layer_{index}"] |= {"scale1": 1.0, "scale2": 1.0}
    close(torch.from_numpy(oracle.jax_logits(tree, IMAGES.permute(0, 2, 3, 1).numpy())),
          oracle.reference_logits(DEIT, IMAGES, 3, "tanh"))  # fmt: skip


def test_deit3_jax_has_no_place_for_a_distillation_token(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="dist_token, for which deit3-jax has no place"):
        export_checkpoint(source(tmp_path, "distilled"), tmp_path / "x.msgpack")
    assert not (tmp_path / "x.msgpack").exists()


def test_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    written = export_checkpoint(source(tmp_path), tmp_path / "x.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.pth", "x.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 3):  # exported with 2
        (logits,) = session.run(None, {"images": IMAGES[:batch].numpy()})
        close(torch.from_numpy(logits), oracle.reference_logits(DEIT3, IMAGES[:batch], 4))
    assert written.difference < 1e-4
    assert "[batch, 3, 32, 32]" in written.notes[0]
    told = session.get_modelmeta().custom_metadata_map
    assert (json.loads(told["mean"]), told["image_size"], told["crop_ratio"]) == ([0.485, 0.456, 0.406], "32", "1.0")


def test_a_program_of_torch_export(tmp_path: Path) -> None:
    written = export_checkpoint(source(tmp_path), tmp_path / "x.pt2")
    module = torch.export.load(tmp_path / "x.pt2").module()
    for batch in (1, 3):
        close(module(IMAGES[:batch]).detach(), oracle.reference_logits(DEIT3, IMAGES[:batch], 4))
    assert written.difference < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_torchscript(tmp_path: Path, name: str) -> None:
    written = export_checkpoint(source(tmp_path, name), tmp_path / "x.bin", "torchscript")
    told = {"image_size": "", "std": ""}
    module = torch.jit.load(tmp_path / "x.bin", _extra_files=told)
    for batch in (1, 3):
        with torch.no_grad():
            found = module(IMAGES[:batch])
        close(found, oracle.reference_logits(MODELS[name][0], IMAGES[:batch], MODELS[name][1]))
    assert written.difference < 1e-5
    assert (told["image_size"], json.loads(told["std"])) == (b"32", [0.229, 0.224, 0.225])


def test_overrides_change_the_model_first(tmp_path: Path) -> None:
    written = export_checkpoint(source(tmp_path), tmp_path / "x", overrides=["model.image_size=48"])
    assert written.changes == [("pos_embed", "resampled", "8 x 8", "12 x 12")]
    assert timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True)(torch.zeros(1, 3, 48, 48)).shape == (1, 10)


def test_our_own_keeps_recipe_and_classes(tmp_path: Path) -> None:
    recipe = get_recipe("demo_pretrain")
    names = [f"digit {number}" for number in range(10)]
    content = {"model": build_model(recipe.model).state_dict(), "recipe": recipe.model_dump(mode="json")}
    save_checkpoint(tmp_path / "last.pt", content | {"classes": names, "ema": None})
    export_checkpoint(tmp_path / "last.pt", tmp_path / "folder")
    weights = load_weights(tmp_path / "folder" / "model.safetensors")
    assert (weights.recipe, weights.classes) == (recipe, names)
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["pretrained_cfg"]["label_names"] == names


@pytest.mark.parametrize(("name", "format", "message"), [
    ("x.pt", None, "a .pt resumes a run"),
    ("x.h5", None, "expected a folder, or a name that ends in .msgpack, .onnx, .pt2, .pth, .safetensors, .torchscript"),
    ("x.bin", "tim", "--format tim: expected one of deit3-jax, facebook, onnx, program, timm, torchscript .*'timm'"),
])  # fmt: skip
def test_formats_that_are_not(name: str, format: str | None, message: str) -> None:
    with pytest.raises(RunError, match=message):
        choose_format(Path(name), format)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", str(source(tmp_path)), str(tmp_path / "x.bin"), "--format", "facebook", "model.num_classes=4"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{tmp_path / 'x.bin'}: facebook, from facebookresearch/deit",
                     "head  initialised  10 classes  4 classes", "max difference of logits 0"]  # fmt: skip
    assert main(["convert", str(tmp_path / "absent"), str(tmp_path / "y.pth")]) == 2
    assert capsys.readouterr().err == f"deit-fast: {tmp_path / 'absent'}: no such checkpoint\n"


def test_a_foreign_checkpoint_is_evaluated(folder_data: Path, tmp_path: Path) -> None:
    weights = oracle.reference_weights(128, 4, 4, 8, 3)
    torch.save({"model": weights}, tmp_path / "x.pth")
    words = ["run.precision=fp32", "data.eval_crop_ratio=0.875"]
    scores = evaluate_checkpoint(tmp_path / "x.pth", str(folder_data), words)
    assert (scores["format"], scores["images"], scores["changes"]) == ("facebookresearch/deit", 33, [])
    export_checkpoint(tmp_path / "x.pth", tmp_path / "ours")
    again = evaluate_checkpoint(tmp_path / "ours" / "model.safetensors", str(folder_data), words)
    assert again["loss"] == scores["loss"]
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() >= {"blocks.0.ls1.gamma"}


def test_a_head_of_21k_is_evaluated_on_1k_only_where_asked(folder_data: Path, tmp_path: Path) -> None:
    save_file({k.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): v for k, v in
               oracle.reference_weights(128, 4, 4, 8, 19167).items()}, tmp_path / "w21.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="19167"):
        evaluate_checkpoint(tmp_path / "w21.safetensors", str(folder_data))
    with pytest.raises(ValueError, match="1000"):  # the folder has three classes
        evaluate_checkpoint(tmp_path / "w21.safetensors", str(folder_data), ["model.num_classes=1000"])
