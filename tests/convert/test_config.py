"""What stands beside the weights is taken, and said: timm's config.json, old and new, and transformers'."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import deit_fast
from deit_fast.convert.detect import load_weights
from deit_fast.convert.export import export_checkpoint
from deit_fast.runtime.errors import RunError
from tests.oracles import foreign_checkpoints as oracle
from tests.oracles.foreign_checkpoints import DEIT, DEIT3

DATA = {"crop_pct": 0.8, "interpolation": "bilinear", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def timm_folder(folder: Path, config: dict) -> Path:
    folder.mkdir(exist_ok=True)
    model = timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=3)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "deit_tiny_patch16_224", **config}))
    return folder


@pytest.mark.parametrize("config", [
    {"pretrained_cfg": DATA, "label_names": ["cat", "dog", "emu"]},
    {"pretrained_cfg": {**DATA, "label_names": {"0": "cat", "2": "emu", "1": "dog"}}},
    {**DATA, "labels": ["cat", "dog", "emu"]},  # as before timm 0.9
])  # fmt: skip
def test_timms_config(config: dict, tmp_path: Path) -> None:
    weights = load_weights(timm_folder(tmp_path / "x", config))
    data = weights.recipe.data
    assert (data.eval_crop_ratio, data.eval_interpolation) == (0.8, "bilinear")
    assert (data.mean, data.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert weights.classes == ["cat", "dog", "emu"]
    assert weights.said[0].startswith("read as deit_tiny_patch16 at 32 px, 3 classes")
    for word in ("data.eval_crop_ratio=0.8", 'data.eval_interpolation="bilinear"', "data.mean=[0.5, 0.4, 0.3]",
                 "data.std=[0.2, 0.3, 0.4]", "3 names of classes"):  # fmt: skip
        assert word in weights.said[1]
    assert load_weights(tmp_path / "x" / "model.safetensors").recipe == weights.recipe  # its config is beside it


def test_what_cannot_be_taken_is_said(tmp_path: Path) -> None:
    config = {"interpolation": "lanczos", "crop_mode": "squash"}
    weights = load_weights(timm_folder(tmp_path / "x", {"pretrained_cfg": config}))
    assert weights.recipe.data.eval_crop_ratio == 0.875  # timm's, where there is none
    assert weights.said[-2:] == (
        "not taken from config.json: interpolation='lanczos': bicubic instead",
        "not taken from config.json: crop_mode='squash': the centre is cropped instead",
    )
    with pytest.raises(RunError, match=r"x: .*eval_crop_ratio"):
        load_weights(timm_folder(tmp_path / "x", {"pretrained_cfg": {"crop_pct": 1.2}}))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_interpolation_reaches_the_pixels(interpolation: str, tmp_path: Path) -> None:
    """PIL resizes, for prediction by path and by `transform`; our own export goes out and back with it."""
    config = {"pretrained_cfg": DATA | {"interpolation": interpolation}}
    export_checkpoint(timm_folder(tmp_path / "x", config), tmp_path / "y")
    assert json.loads((tmp_path / "y" / "config.json").read_text())["pretrained_cfg"]["interpolation"] == interpolation
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    picture = Image.fromarray(noise)
    kernel = getattr(Image.Resampling, interpolation.upper())
    resized = picture.resize((40, int(90 * 40 / 70)), kernel)  # 32 / 0.8
    top = round((resized.height - 32) / 2)
    pixels = np.asarray(resized.crop((4, top, 36, top + 32)), np.float32) / 255
    expected = torch.from_numpy((pixels - np.float32(DATA["mean"])) / np.float32(DATA["std"])).permute(2, 0, 1)
    for folder in ("x", "y"):
        model = deit_fast.load_model(tmp_path / folder, overrides=["run.precision=fp32"])
        torch.testing.assert_close(model.transform(picture), expected, atol=0.05, rtol=0)
        with torch.no_grad():
            scores = model.model(expected[None]).softmax(1)[0]
        found = deit_fast.predict(model, picture)[0]
        torch.testing.assert_close(torch.tensor(found.scores), scores[found.labels], atol=2e-3, rtol=0)


def test_our_own_export_whose_config_was_changed(tmp_path: Path) -> None:
    """timm takes what its config.json says, so we do; unchanged, the header's recipe has nothing to learn from it."""
    export_checkpoint(timm_folder(tmp_path / "x", {"pretrained_cfg": DATA}), tmp_path / "y")
    assert load_weights(tmp_path / "y").said == ()
    config = json.loads((tmp_path / "y" / "config.json").read_text())
    config["pretrained_cfg"]["crop_pct"] = 0.9
    config["label_names"] = ["a", "b", "c"]
    (tmp_path / "y" / "config.json").write_text(json.dumps(config))
    weights = load_weights(tmp_path / "y")
    assert (weights.recipe.data.eval_crop_ratio, weights.recipe.data.mean) == (0.9, (0.5, 0.4, 0.3))
    assert weights.classes == ["a", "b", "c"]
    assert weights.said == ("taken from config.json: data.eval_crop_ratio=0.9, 3 names of classes",)


def transformers_folder(folder: Path, processor: dict, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(oracle.transformers_names(DEIT, "vit"), folder / "model.safetensors")
    plain = {"model_type": "vit", "hidden_act": "gelu", "num_attention_heads": 3, "image_size": 32}
    (folder / "config.json").write_text(json.dumps(plain | config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_transformers_config(tmp_path: Path) -> None:
    processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2, "do_center_crop": True,
                 "size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}  # fmt: skip
    names = {str(label): f"sort {label}" for label in range(10)}
    weights = load_weights(transformers_folder(tmp_path / "x", processor, id2label=names, hidden_act="gelu_new"))
    data = weights.recipe.data
    assert (data.eval_crop_ratio, data.eval_interpolation, data.mean) == (0.8, "bilinear", (0.5, 0.5, 0.5))
    assert weights.classes == list(names.values())
    assert weights.recipe.model.activation == "gelu_tanh"


@pytest.mark.parametrize(("config", "message"), [
    ({"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu': expected 'gelu'"),
    ({"num_attention_heads": 6}, "has 6 attention heads: expected 3, as deit_tiny_patch16 has"),
    ({"layer_norm_eps": 1e-3}, "layer_norm_eps=0.001: expected 1e-6"),
    ({"model_type": "dinov2"}, "model_type='dinov2': expected vit or deit"),
])  # fmt: skip
def test_transformers_models_that_are_not_ours(config: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=message):
        load_weights(transformers_folder(tmp_path / "x", {}, **config))


def test_a_file_alone_says_what_it_was_read_as(tmp_path: Path) -> None:
    torch.save({"model": DEIT3}, tmp_path / "a.pth")
    assert load_weights(tmp_path / "a.pth").said == (
        "read as deit3_nano_patch4 at 32 px, 10 classes, of facebookresearch/deit",
    )


@pytest.mark.parametrize(("processor", "mean", "std"), [
    ({"do_normalize": False, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}, 0.0, 1.0),
    ({"do_rescale": False, "image_mean": [127.5, 127.5, 127.5], "image_std": [51.0, 51.0, 51.0]}, 0.5, 0.2),
    ({"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [0.4, 0.4, 0.4]}, 0.5, 0.2),
    ({"rescale_factor": 0.00392156862745098, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}, 0.5, 0.2),
])  # fmt: skip
def test_colours_of_a_transformers_processor(processor: dict, mean: float, std: float, tmp_path: Path) -> None:
    """It computes (pixels x factor - mean) / std, where a recipe's are of images in [0, 1]."""
    data = load_weights(transformers_folder(tmp_path / "x", processor)).recipe.data
    assert (data.mean, data.std) == (pytest.approx([mean] * 3), pytest.approx([std] * 3))


def test_what_a_transformers_processor_does_otherwise(tmp_path: Path) -> None:
    processor = {"resample": 0, "size": {"height": 32, "width": 32}}
    said = "\n".join(load_weights(transformers_folder(tmp_path / "x", processor)).said)
    assert "not taken from config.json: interpolation='nearest': bicubic instead" in said
    assert "not taken from config.json: size of both sides, to which images are squashed" in said


def test_the_options_of_a_training_file(tmp_path: Path) -> None:
    """timm's scripts have crop_pct, mean, std and interpolation there, facebookresearch/deit's eval_crop_ratio."""
    timms = {"crop_pct": 0.8, "mean": [0.5, 0.4, 0.3], "std": (0.2, 0.3, 0.4), "interpolation": "bilinear"}
    torch.save({"state_dict": DEIT, "args": argparse.Namespace(**timms)}, tmp_path / "timm.pth.tar")
    weights = load_weights(tmp_path / "timm.pth.tar")
    data = weights.recipe.data
    assert (data.eval_crop_ratio, data.eval_interpolation) == (0.8, "bilinear")
    assert (data.mean, data.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert weights.said[1].startswith("taken from args: data.eval_crop_ratio=0.8")
    torch.save({"model": DEIT3, "args": argparse.Namespace(eval_crop_ratio=0.9)}, tmp_path / "facebook.pth")
    assert load_weights(tmp_path / "facebook.pth").recipe.data.eval_crop_ratio == 0.9
    others = {"crop_pct": None, "mean": "imagenet", "std": [0, 0, 0], "interpolation": "", "img_size": [1, 2, 3, "x"]}
    torch.save({"model": DEIT, "args": argparse.Namespace(**others)}, tmp_path / "other.pth")
    torch.save({"model": DEIT}, tmp_path / "bare.pth")
    assert load_weights(tmp_path / "other.pth").recipe == load_weights(tmp_path / "bare.pth").recipe


@pytest.mark.parametrize("options", [
    {"input_size": (3, 32, 128)}, {"img_size": [32, 128]}, {"model_kwargs": {"img_size": (32, 128)}},
])  # fmt: skip
def test_the_options_say_that_patches_are_no_square(options: dict, tmp_path: Path) -> None:
    """2 x 8 patches are as many as 4 x 4."""
    model = timm.create_model("deit_tiny_patch16_224", img_size=(32, 128), num_classes=3)
    content = {"state_dict": model.state_dict(), "arch": "deit_tiny_patch16_224", "args": argparse.Namespace(**options)}
    torch.save(content, tmp_path / "a.pth.tar")
    with pytest.raises(RunError, match="has a grid of 2 x 8 patches: expected a square one"):
        load_weights(tmp_path / "a.pth.tar")


def test_quantised_weights(tmp_path: Path) -> None:
    torch.save({name: (100 * each).to(torch.int8) for name, each in DEIT.items()}, tmp_path / "a.pth")
    with pytest.raises(RunError, match=r"of torch\.int8, quantised: expected floating-point weights"):
        load_weights(tmp_path / "a.pth")


def test_words_that_are_wrong_are_named(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "x", {"image_mean": "grey"})
    with pytest.raises(RunError, match=r"x: has config.json's data.mean='grey': Input should be a valid tuple$"):
        load_weights(folder)
    folder = transformers_folder(tmp_path / "x", {}, id2label={"0": "cat", "1": "dog"})
    weights = load_weights(folder)
    assert weights.classes is None
    assert weights.said[1] == "not taken from config.json: 2 names of classes: expected 10, by the weights"
    (folder / "preprocessor_config.json").write_text('{"size": [}')
    with pytest.raises(RunError, match=r"x: has a preprocessor_config.json that is no JSON \("):
        load_weights(folder)
