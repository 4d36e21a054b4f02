"""Initial weights: numbers that no release of torch may move, and the distributions that scipy says they are from."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from deit_fast.convert.detect import Weights
from deit_fast.convert.fit import build_initialised
from deit_fast.infer.create import create_model
from deit_fast.models.build import build_model
from deit_fast.models.initialise import draw_weights, truncated_normal
from deit_fast.recipe.sections import Model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.world import World
from deit_fast.training.prepare import initial_state
from tests.toys import TOYS

# SHA-256 of the weights from seed 7, 16 px and 5 classes, names and fp32 bytes in the order of the names.
GOLDEN = {
    "deit3": "0c1e91cb33c2ed4d",
    "parallel": "6439a30f1b319b2f",
    "deit": "9a4d6a56ef30c0ce",
    "distilled": "ce049d99f50d5549",
    "cait": "569b1adeca1856b8",
    "resmlp": "6452620a1a2f445f",
    "patchconvnet": "fe3e2e25cdd6f03e",
    "class_tokens": "3d89171c596303c8",
}
VARIANTS = [{}, {"name": "deit3_tiny_patch16", "stem": "hmlp"}, {"position": "sincos"}, {"pool": "avg"}]


def section(name: str = "deit3_nano_patch4", **fields: object) -> Model:
    return Model(**{"name": name, "image_size": 16, "num_classes": 5, **fields})


def digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        found.update(name.encode() + weight.detach().numpy().tobytes())
    return found.hexdigest()[:16]


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("name", TOYS)
def test_golden_weights_of_every_family(name: str) -> None:
    assert digest(build_model(section(name), 7)) == GOLDEN[name]


def test_golden_numbers() -> None:
    model = build_model(section(), 7)
    assert model.head.weight[0, :3].tolist() == [-0.027823006734251976, 0.00548323430120945, -0.009487978182733059]
    assert model.cls_token[0, 0, :3].tolist() == [-0.000691209570504725, 0.0028934418223798275, 0.006281990557909012]
    assert model.patch_embed.proj.weight[0, 0, 0, :3].tolist() == [
        0.1112549901008606,
        -0.10553226619958878,
        -0.08721203356981277,
    ]


def test_a_weight_is_what_numpy_gives_for_the_documented_key() -> None:
    model = build_model(section(), 7)
    name = int.from_bytes(hashlib.sha256(b"blocks.1.mlp.fc1.weight").digest()[:8], "little")
    random = np.random.RandomState(np.random.Philox(key=[7, 10], counter=np.array([0, name, 0, 0], np.uint64)))
    weight = model.blocks[1].mlp.fc1.weight.detach()
    assert np.array_equal(weight.numpy(), (0.02 * random.standard_normal(weight.shape)).astype(np.float32))


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("fields", [*({"name": name} for name in TOYS), *VARIANTS], ids=str)
def test_torchs_own_generator_decides_nothing(fields: dict[str, object]) -> None:
    states = []
    for theirs, ours in ((0, 3), (1, 3), (0, 4)):
        torch.manual_seed(theirs)
        states.append(build_model(section(**fields), ours).state_dict())
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if not torch.equal(first[name], other[name])]
    constant = [name for name in first if (first[name] == first[name].flatten()[0]).all()]
    fixed = ["pos_embed"] if fields.get("position") == "sincos" else []
    assert sorted(drawn + constant + fixed) == sorted(first)


@pytest.mark.parametrize("std", [1e-3, 0.02, 0.7, 1.0, 2.0, 3.0, 100.0])
def test_the_truncated_normal_is_scipys(std: float) -> None:
    drawn = truncated_normal(std, np.random.RandomState(1), 100_000)
    assert len(drawn) == 100_000
    assert np.abs(drawn).max() <= 2
    assert stats.kstest(drawn, stats.truncnorm(-2 / std, 2 / std, scale=std).cdf).pvalue > 1e-3


def test_no_weight_lies_far_out() -> None:
    """torch 2.11 draws a -2 in four million of them: 100 standard deviations."""
    layer = nn.Linear(2000, 2000)
    draw_weights(layer_in(layer), 0.02, 0)
    weight = layer.weight.detach().double().flatten().numpy()
    assert np.abs(weight).max() < 0.02 * 6.5
    assert stats.kstest(weight[::7], stats.norm(0, 0.02).cdf).pvalue > 1e-3
    assert not layer.bias.any()


def layer_in(layer: nn.Module) -> nn.Module:
    return nn.ModuleDict({"layer": layer})


def test_convolutions_are_torchs() -> None:
    """Uniform within +- 1 / sqrt(inputs of an output), weights and biases; also with groups and without a bias."""
    for layer in (nn.Conv2d(3, 512, 8), nn.Conv2d(512, 512, 3, groups=512), nn.Conv2d(8, 64, 7, bias=False)):
        draw_weights(layer_in(layer), 0.02, 0)
        bound = layer.weight[0].numel() ** -0.5
        for weight in layer.parameters():
            values = weight.detach().double().flatten().numpy()
            assert np.abs(values).max() <= np.float32(bound)
            assert stats.kstest(values, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


def test_a_tensor_is_a_function_of_seed_and_name_alone() -> None:
    plain = build_model(section("deit_tiny_patch16"), 1).state_dict()
    for fields, changed in (
        ({"num_classes": 9}, {"head.weight", "head.bias"}),
        ({"name": "deit_tiny_distilled_patch16"}, {"pos_embed"}),
        ({"image_size": 32}, {"pos_embed"}),
    ):
        other = build_model(section(**{"name": "deit_tiny_patch16", **fields}), 1).state_dict()
        for name in plain.keys() - changed:
            assert torch.equal(plain[name], other[name]), name
    alike = [weight.flatten() for name, weight in plain.items() if name.endswith("mlp.fc1.weight")]
    assert np.abs(np.corrcoef(torch.stack(alike)) - np.eye(len(alike))).max() < 0.02


def test_what_given_weights_lack_comes_from_the_seed_too() -> None:
    given = build_model(section(), 1)
    weights = Weights(given.state_dict(), get_recipe("demo_pretrain"), None)
    models = []
    for theirs in (0, 1):
        torch.manual_seed(theirs)
        models.append(build_initialised(section(num_classes=9), weights, 2)[0])
    expected = build_model(section(num_classes=9), 2)
    for model in models:
        assert torch.equal(model.head.weight, expected.head.weight)
        assert torch.equal(model.blocks[0].attn.qkv.weight, given.blocks[0].attn.qkv.weight)


def test_a_run_has_its_init_seeds_weights() -> None:
    words = ["model.image_size=16", "model.num_classes=5", "run.seed=3", "run.init_seed=8"]
    recipe = get_recipe("demo_pretrain", words)
    torch.manual_seed(5)
    state = initial_state(recipe, World(0, 1, torch.device("cpu")))
    assert digest(state.model) == digest(build_model(recipe.model, 8))


def test_without_a_seed_torchs_decides() -> None:
    torch.manual_seed(0)
    models = [create_model("deit3_nano_patch4", img_size=16) for _ in range(2)]
    torch.manual_seed(0)
    models.append(create_model("deit3_nano_patch4", img_size=16))
    assert digest(models[0]) == digest(models[2]) != digest(models[1])
