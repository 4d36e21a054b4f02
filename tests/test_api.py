"""The front door: models by name with a checkpoint's weights, and every family in prediction and features."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import deit_fast
from deit_fast.checkpoint.format import save_checkpoint
from deit_fast.cli.main import main
from deit_fast.convert.names.facebook import to_facebook
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import DataError, RecipeError, RunError
from deit_fast.zoo import find_family
from tests.oracles import foreign_checkpoints as oracle
from tests.toys import TOYS

PICTURES = [Image.radial_gradient("L").resize((32, 32)).rotate(90 * turn).convert("RGB") for turn in range(2)]
PICTURES[1] = PICTURES[1].transform((32, 32), Image.Transform.AFFINE, (1, 0, 9, 0, 1, 4))
CLOSE = {"rtol": 0, "atol": 1e-4}


pytestmark = pytest.mark.usefixtures("toys")


def toy_checkpoint(folder: Path, name: str, *words: str) -> Path:
    """A checkpoint of ours of a toy, at 32 px with 5 classes and weights large enough to tell images apart."""
    recipe = get_recipe("demo_pretrain", [f"model.name={name}", "model.image_size=32", "model.num_classes=5",
                                          "model.layer_scale=auto", "run.precision=fp32", *words])  # fmt: skip
    torch.manual_seed(0)
    model = deit_fast.create_model(**recipe.model.model_dump(exclude={"image_size"}), img_size=32)
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.2)
    state = {"model": model.state_dict(), "ema": None, "recipe": recipe.model_dump(mode="json"), "classes": None}
    save_checkpoint(folder / "last.pt", state)
    return folder / "last.pt"


def inputs(model: deit_fast.LoadedModel) -> Tensor:
    return torch.stack([model.transform(picture) for picture in PICTURES])


@pytest.mark.parametrize("name", TOYS)
def test_every_family_predicts(tmp_path: Path, name: str) -> None:
    model = deit_fast.load_model(toy_checkpoint(tmp_path, name))
    with torch.no_grad():
        expected = model.model(inputs(model)).softmax(1)
    assert expected.shape == (2, 5)  # a distilled model's two heads are averaged
    for found, scores in zip(deit_fast.predict(model, PICTURES), expected, strict=True):
        torch.testing.assert_close(torch.tensor(found.scores), scores[found.labels], **CLOSE)
        assert found.names == [str(label) for label in found.labels]
    assert model.changes == []


@pytest.mark.parametrize("name", TOYS)
def test_every_family_has_features(tmp_path: Path, name: str) -> None:
    loaded = deit_fast.load_model(toy_checkpoint(tmp_path, name))
    model, images = loaded.model, inputs(loaded)
    with torch.no_grad():
        tokens, logits = model.forward_features(images), model(images)
    found = deit_fast.extract_features(loaded, PICTURES)
    assert isinstance(found, Tensor)
    if TOYS[name].distilled:
        assert found.shape == (2, 2, 32)
        heads = model.head(found[:, 0]), model.head_dist(found[:, 1])
        torch.testing.assert_close(sum(heads) / 2, logits, **CLOSE)
    elif TOYS[name].class_tokens:
        torch.testing.assert_close(found, tokens.mean(1), **CLOSE)
    else:  # what the head sees
        torch.testing.assert_close(model.head(found), logits, **CLOSE)

    depth, side = TOYS[name].depth, 32 // TOYS[name].patch_size
    last, first = deit_fast.extract_features(loaded, PICTURES, layers=[-1, 0])
    assert last.shape == first.shape == (2, 32, side, side)
    if hasattr(model, "forward_intermediates"):
        with torch.no_grad():
            theirs = model.forward_intermediates(images, indices=[0, depth - 1], intermediates_only=True)
        torch.testing.assert_close(first, theirs[0], **CLOSE)
        torch.testing.assert_close(last, theirs[1], **CLOSE)
    two = deit_fast.extract_features(loaded, PICTURES, layers=2, pool="avg")
    assert len(two) == 2
    torch.testing.assert_close(two[1], last.mean((2, 3)), **CLOSE)
    if find_family(name).is_vit:
        (token,) = deit_fast.extract_features(loaded, PICTURES, layers=1, pool="token")
        torch.testing.assert_close(model.norm(token), tokens[:, 0], **CLOSE)
    else:
        with pytest.raises(RunError, match="expected a model with a class token in its blocks"):
            deit_fast.extract_features(loaded, PICTURES, layers=1, pool="token")


def test_mean_pooling_and_fixed_positions(tmp_path: Path) -> None:
    loaded = deit_fast.load_model(toy_checkpoint(tmp_path, "deit3", "model.pool=avg", "model.position=sincos"))
    with torch.no_grad():
        tokens = loaded.model.forward_features(inputs(loaded))
    torch.testing.assert_close(deit_fast.extract_features(loaded, PICTURES), tokens.mean(1), **CLOSE)


@pytest.mark.parametrize(("options", "message"), [
    ({"layers": [3]}, r"layers=\[3\]: expected numbers of the 3 blocks, or how many of the last"),
    ({"layers": 4}, "layers=4: expected numbers of the 3 blocks"),
    ({"layers": [-4]}, r"layers=\[-4\]: expected"),
    ({"pool": "avg"}, "pool='avg': expected with layers"),
])  # fmt: skip
def test_blocks_that_are_not_there(tmp_path: Path, options: dict, message: str) -> None:
    model = deit_fast.load_model(toy_checkpoint(tmp_path, "deit3"))
    with pytest.raises(RunError, match=message):
        deit_fast.extract_features(model, PICTURES, **options)


def reference_file(folder: Path, classes: int, dim: int = 192) -> Path:
    """DeiT III tiny at 64 px in facebookresearch/deit's layout, by an independent writer."""
    torch.save({"model": oracle.reference_weights(dim, 12, 16, 4, classes)}, folder / "x.pth")
    return folder / "x.pth"


def test_a_model_with_a_checkpoints_weights(tmp_path: Path) -> None:
    path = reference_file(tmp_path, 7)
    weights = torch.load(path)["model"]
    same = deit_fast.create_model("deit3_tiny_patch16", pretrained=path)
    assert same.changes == []
    assert same.pos_embed.shape == (1, 16, 192)
    assert same.head.weight.shape == (7, 192)
    back = to_facebook(same.state_dict())
    assert all(torch.equal(back[name], value) for name, value in weights.items())

    told = ("fitted to deit_tiny_patch16_LS:\nthe weights are of 64 px .4 x 4 patches. and the model is of 224 px "
            ".14 x 14 patches.: a factor of 3.5, .*\npos_embed +resampled +4 x 4 +14 x 14")  # fmt: skip
    with pytest.warns(UserWarning, match=told):
        other = deit_fast.create_model("deit_tiny_patch16_LS", str(path), num_classes=3, drop_path=0.1)
    assert [(change.weight, change.done) for change in other.changes] == [("pos_embed", "resampled"),
                                                                         ("head", "initialised")]  # fmt: skip
    assert other.head.weight.shape == (3, 192)
    assert torch.equal(other.blocks[3].mlp.fc1.weight, weights["blocks.3.mlp.fc1.weight"])
    assert other(torch.zeros(1, 3, 224, 224)).shape == (1, 3)
    with pytest.raises(RunError, match="weights of another architecture"):
        deit_fast.create_model("deit3_small_patch16", pretrained=path)
    with pytest.raises(RecipeError, match="drop_pat: no such key"):
        deit_fast.create_model("deit3_tiny_patch16", pretrained=path, drop_pat=0.1)
    with pytest.raises(RunError, match=r"nowhere\.pth: no such checkpoint"):
        deit_fast.create_model("deit3_tiny_patch16", pretrained=tmp_path / "nowhere.pth")


def test_what_weights_compute_comes_with_them(tmp_path: Path) -> None:
    tree = oracle.jax_tree(128, 4, 4, 4, 8, 10)
    (tmp_path / "a.msgpack").write_bytes(oracle.flax_bytes(tree))
    images = torch.randn(2, 3, 32, 32)
    expected = torch.from_numpy(oracle.jax_logits(tree, images.permute(0, 2, 3, 1).numpy()))
    model = deit_fast.create_model("deit3_nano_patch4", pretrained=tmp_path / "a.msgpack").eval()
    torch.testing.assert_close(model(images).double(), expected, atol=1e-5, rtol=1e-5)  # with the tanh GELU
    exact = deit_fast.create_model("deit3_nano_patch4", pretrained=tmp_path / "a.msgpack", activation="gelu").eval()
    assert not torch.allclose(exact(images).double(), expected, atol=1e-5)


def test_classes_are_imagenets_where_the_file_names_none(tmp_path: Path) -> None:
    model = deit_fast.load_model(reference_file(tmp_path, 1000))
    assert (model.classes[0], model.names[0]) == ("n01440764", "tench, Tinca tinca")
    assert deit_fast.load_model(reference_file(tmp_path, 11821)).classes[0][0] == "n"
    large = deit_fast.load_model(reference_file(tmp_path, 21841))
    assert len(large.classes) == len(large.names) == 21841
    assert large.names[large.classes.index("n01440764")] == "tench, Tinca tinca"
    cut = deit_fast.load_model(tmp_path / "x.pth", overrides=["model.num_classes=1000"])
    assert (len(cut.classes), cut.names[0]) == (1000, "tench, Tinca tinca")
    assert [change.done for change in cut.changes] == ["mapped"]
    assert deit_fast.load_model(reference_file(tmp_path, 7)).classes == list("0123456")


def test_timms_folders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("deit3_small_patch16_224", img_size=32, num_classes=3).eval()
    theirs.pretrained_cfg["mean"] = (0.5, 0.5, 0.5)
    names = {"label_names": ["cat", "dog", "emu"]}
    timm.models.save_for_hf(theirs, tmp_path / "folder", model_config=names, safe_serialization=True)
    model = deit_fast.load_model(tmp_path / "folder")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert model.classes == ["cat", "dog", "emu"]
    assert model.recipe.data.mean == (0.5, 0.5, 0.5)
    (tmp_path / "empty").mkdir()
    save_file(dict(theirs.state_dict()), tmp_path / "empty" / "model.safetensors")
    with pytest.raises(RunError, match="empty: is a folder: expected a file of weights, or a model's folder of timm"):
        deit_fast.load_model(tmp_path / "empty")


def test_the_front_door() -> None:
    assert all(callable(getattr(deit_fast, name)) for name in deit_fast.__all__)
    assert dir(deit_fast) == deit_fast.__all__
    with pytest.raises(AttributeError, match="has no attribute 'evaluated'"):
        deit_fast.evaluated  # noqa: B018


def test_commands_take_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, checkpoint = tmp_path / "folder", reference_file(tmp_path, 3)
    assert main(["convert", str(checkpoint), str(folder)]) == 0
    assert main(["convert", str(folder), str(tmp_path / "back.pth")]) == 0
    assert f"{tmp_path / 'back.pth'}: facebook, from deit_fast" in capsys.readouterr().out
    back, first = (torch.load(path)["model"] for path in (tmp_path / "back.pth", checkpoint))
    assert back.keys() == first.keys()
    assert all(torch.equal(back[name], value) for name, value in first.items())
    PICTURES[0].save(tmp_path / "a.png")
    assert main(["predict", str(folder), str(tmp_path / "a.png"), "--top", "1"]) == 0
    (folder / "model.safetensors").unlink()
    for words in (["predict", str(folder), str(tmp_path / "a.png")], ["convert", str(folder), str(tmp_path / "y.pth")],
                  ["evaluate", str(folder), "--data", str(tmp_path)]):  # fmt: skip
        capsys.readouterr()
        assert main(words) == 2
        assert f"{folder}: is a folder: expected a file of weights, or a model's folder" in capsys.readouterr().err


def test_arguments_as_programs_write_them(tmp_path: Path) -> None:
    """Paths as objects or texts, words as one text; a mistake is named for what it is."""
    path = toy_checkpoint(tmp_path, "deit3")
    for label in range(5):
        (tmp_path / "data" / "val" / str(label)).mkdir(parents=True)
        PICTURES[label % 2].save(tmp_path / "data" / "val" / str(label) / "a.png")
    data, report = tmp_path / "data", str(tmp_path / "report")
    scores = deit_fast.evaluate(str(path), data, overrides="data.eval_crop_ratio=0.9 run.precision=fp32", report=report)
    assert scores == json.loads((tmp_path / "report" / "scores.json").read_text())
    with pytest.raises(RunError, match="--metric real: expected real=FILE"):
        deit_fast.evaluate(path, data, metrics="real")
    wrong: Any = "some"
    with pytest.raises(RunError, match="classes='some': expected 'data' or 'all'"):
        deit_fast.evaluate(path, data, classes=wrong)
    with pytest.raises(RecipeError, match=r"model\.num_classes=0: expected"):
        deit_fast.create_model("deit3", num_classes=0)
    with pytest.raises(RunError, match="top_k=0: expected 1 or more"):
        deit_fast.predict(deit_fast.load_model(path), PICTURES, 0)
    (tmp_path / "mine.json").write_text(json.dumps(get_recipe("demo_pretrain").model_dump(mode="json")))
    with pytest.raises(DataError, match="nowhere"):
        deit_fast.train(tmp_path / "mine.json", tmp_path / "nowhere", tmp_path / "run", overrides="optim.lr=1e-3")
