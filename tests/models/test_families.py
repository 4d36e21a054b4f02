"""The other families and fields: each trains, skips what stochastic depth drops, and computes what its paper says."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.cait import LayerScaleBlock
from timm.models.mlp_mixer import ResBlock
from timm.models.vision_transformer import ParallelThingsBlock
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from deit_fast.convert.fit import load_fitted
from deit_fast.infer.create import create_model
from deit_fast.models.cait import SubsetCaitBlock
from deit_fast.models.resmlp import SubsetResBlock
from deit_fast.models.stochastic_depth import SubsetParallelBlock
from deit_fast.optim.build import parameter_groups
from deit_fast.runtime.errors import RunError
from deit_fast.zoo import find_architecture
from tests.toys import TOYS
from tests.training.test_step import batch, make

pytestmark = pytest.mark.usefixtures("toys")


@pytest.mark.parametrize("words", [["model.drop_path=0.5"], ["model.drop_path=0.5", "model.drop_path_mode=bernoulli"],
                                   ["run.compile=off"]], ids=["subset", "bernoulli", "dense"])  # fmt: skip
@pytest.mark.parametrize("name", TOYS)
def test_a_step_of_every_family(name: str, words: list[str]) -> None:
    _, step = make(
        [f"model.name={name}", "model.image_size=16", "model.layer_scale=auto", "optim.ema_decay=0.5", *words]
    )
    model = step.state.model.train()
    loss = step.objective(*batch())
    loss.backward()
    assert loss.isfinite()
    for key, param in model.named_parameters():
        assert param.grad is not None, key
        assert param.grad.isfinite().all(), key
        # A bias of all keys moves every score of a query by as much, which softmax does not see.
        assert param.grad.any() or key.endswith("k.bias"), key
    before = copy.deepcopy(model.state_dict())
    step([batch()], 1e-2)
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert len(moved) > 0.9 * len(before)
    assert step.meter.sums[2].item() == 1
    assert step.predictor(model.eval())(batch().images).shape == (8, 5)


@pytest.mark.parametrize("name", TOYS)
def test_every_family_compiles_without_graph_breaks(name: str) -> None:
    _, step = make([f"model.name={name}", "model.image_size=16", "model.layer_scale=auto", "model.drop_path=0.5"])
    step.state.model.train()
    torch._dynamo.reset()
    compiled = torch.compile(step.objective, backend="eager", fullgraph=True)
    losses = []
    for objective in (step.objective, compiled):
        torch.manual_seed(0)
        losses.append(objective(*batch(mixed=True)))
    torch.testing.assert_close(*losses)


def test_distilled_models_give_both_heads_where_there_is_a_teacher() -> None:
    model = create_model("deit_tiny_distilled_patch16", img_size=32, num_classes=7)
    images = torch.randn(2, 3, 32, 32)
    classes, distilled = model.train()(images)
    assert classes.shape == distilled.shape == (2, 7)
    torch.testing.assert_close(model.eval()(images), (classes + distilled) / 2)
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=7).eval()
    theirs.load_state_dict(model.state_dict())
    assert torch.equal(theirs(images), model(images))


@pytest.mark.parametrize(("name", "theirs"), [("cait_xxs24", "cait_xxs24_224"), ("resmlp_12", "resmlp_12_224")])
def test_logits_are_timms(name: str, theirs: str) -> None:
    ours = create_model(name, img_size=32, num_classes=7, drop_path=0.2).eval()
    model = timm.create_model(theirs, img_size=32, num_classes=7).eval()
    model.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(images), model(images))


def test_stochastic_depth_of_cait_and_resmlp_is_constant() -> None:
    cait = create_model("cait_xxs24", img_size=32, drop_path=0.2)
    assert [p.drop_prob for p in cait.blocks.modules() if isinstance(p, DropPath)] == [0.2] * 24
    assert not any(isinstance(m, DropPath) for m in cait.blocks_token_only.modules())
    resmlp = create_model("resmlp_12", img_size=32, drop_path=0.2)
    assert [p.drop_prob for p in resmlp.modules() if isinstance(p, DropPath)] == [0.2] * 12
    assert not any(isinstance(m, DropPath) for m in create_model("cait", img_size=16).modules())


def test_linear_stochastic_depth() -> None:
    model = create_model("deit_tiny_patch16", img_size=32, drop_path=0.22, drop_path_decay="linear")
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.02 * i for i in range(12)])
    assert rates == [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    convnet = create_model("patchconvnet", drop_path=0.2, drop_path_decay="linear")
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in convnet.blocks] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize(
    ("name", "decay"),
    [("deit_small_patch16", "linear"), ("deit3_small_18x2_patch16", "constant"), ("cait_xxs24", "constant"),
     ("resmlp_12", "constant"), ("patchconvnet_s60", "linear")],
)  # fmt: skip
def test_executed_flops_fall_with_the_rate(name: str, decay: str) -> None:
    flops = {}
    for mode in ("bernoulli", "subset"):
        with torch.device("meta"):
            model = create_model(name, img_size=64, drop_path=0.5, drop_path_mode=mode, drop_path_decay=decay).train()
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(64, 3, 64, 64))
        flops[mode] = counter.get_total_flops()
    saved = 1 - flops["subset"] / flops["bernoulli"]
    wanted = 0.5 if decay == "constant" else 0.25
    assert 0.75 * wanted < saved <= wanted  # the stem, class attention and the head have no stochastic depth


SUBSETS = {
    "parallel": (SubsetParallelBlock, ParallelThingsBlock, {"dim": 16, "num_heads": 2, "init_values": 0.5}),
    "cait": (SubsetCaitBlock, LayerScaleBlock, {"dim": 16, "num_heads": 2, "init_values": 0.5}),
    "resmlp": (SubsetResBlock, ResBlock, {"dim": 16, "seq_len": 5, "init_values": 0.5}),
}


@pytest.mark.parametrize("kind", SUBSETS)
def test_subset_blocks_are_timms_without_drops_and_on_average(kind: str) -> None:
    ours_type, theirs_type, sizes = SUBSETS[kind]
    torch.manual_seed(0)
    theirs = theirs_type(**sizes)
    x = torch.randn(6, 5, 16)
    for rate, training in ((0.0, True), (0.5, False)):
        ours = ours_type(**sizes, drop_path=rate).train(training)
        ours.load_state_dict(theirs.state_dict())
        assert torch.equal(ours(x), theirs(x))
    with torch.no_grad():
        ours.train()
        # Attention's part alone, which is what the second part is computed from, has the dense mean; so has the whole
        # where the second branch is zero.
        for name, param in ours.named_parameters():
            if "ffn" in name or "mlp" in name or name in ("gamma_2", "ls2"):
                param.zero_()
        dense = copy.deepcopy(ours).eval()(x)
        drawn = torch.stack([ours(x) for _ in range(3000)])
    error = drawn.std(0) / math.sqrt(len(drawn))
    assert ((drawn.mean(0) - dense).abs() / error.clamp_min(1e-9)).max() < 5
    kept = (drawn != x).any(-1).any(-1)  # draws samples
    both = kept.sum(1).unique().tolist()
    assert both == ([3, 4, 5, 6] if kind == "parallel" else [3])  # two branches draw their three of six independently


def test_layer_scale_starts_where_the_papers_say() -> None:
    for name, value in (("cait_s24", 1e-5), ("cait_s36", 1e-6), ("resmlp_12", 0.1), ("resmlp_24", 1e-5),
                        ("patchconvnet_s60", 1e-4), ("patchconvnet_b60", 1e-6)):  # fmt: skip
        assert find_architecture(name).layer_scale == value
    scales = {"cait": "gamma_1", "resmlp": "ls1", "patchconvnet": "gamma_1"}
    for name, key in scales.items():
        for given, value in (("auto", 0.1), (0.25, 0.25)):
            model = create_model(name, img_size=16, layer_scale=given)
            assert torch.all(getattr(model.blocks[0], key) == value)
    with torch.device("meta"):
        for name in ("deit3_small_36_patch16_unscaled", "deit3_small_18x2_patch16_unscaled"):
            assert not any("gamma" in key for key in create_model(name).state_dict())
            assert any("gamma" in key for key in create_model(name, layer_scale=1e-4).state_dict())


def test_running_statistics_are_the_averages_too() -> None:
    _, step = make(["model.name=deit3_tiny_patch16", "model.stem=hmlp", "optim.ema_decay=0.5", "model.image_size=16"])
    fresh = copy.deepcopy(dict(step.state.model.named_buffers()))
    step([batch()], 1e-3)
    step([batch(1)], 1e-3)
    own, average = dict(step.state.model.named_buffers()), dict(step.state.ema.named_buffers())
    key = "patch_embed.proj.1.running_mean"
    assert not torch.equal(own[key], fresh[key])
    assert all(torch.equal(own[name], average[name]) for name in own)
    assert not torch.equal(step.state.model.head.weight, step.state.ema.head.weight)


def test_no_decay_for_resmlps_norms() -> None:
    model = create_model("resmlp", img_size=16)
    still, decayed = (group["params"] for group in parameter_groups(model, 0.1))
    assert all(param.ndim == 1 or param.shape[:2] == (1, 1) for param in still)
    assert {param.ndim for param in decayed} == {2, 4}


def resampled(positions: Tensor, old: int, new: int) -> Tensor:
    grid = positions.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, (new, new), mode="bicubic").permute(0, 2, 3, 1).reshape(1, new * new, -1)


@pytest.mark.parametrize(("name", "slots"), [("deit", 1), ("distilled", 2), ("cait", 0)])
def test_class_slots_stay_when_positions_are_resampled(name: str, slots: int) -> None:
    source, target = create_model(name, img_size=32), create_model(name, img_size=48)
    assert len(load_fitted(target, source.state_dict())) == 1
    old, new = source.pos_embed.detach(), target.pos_embed.detach()
    assert torch.equal(new[:, :slots], old[:, :slots])
    torch.testing.assert_close(new[:, slots:], resampled(old[:, slots:], 4, 6))


def test_weights_that_cannot_change_resolution() -> None:
    source = create_model("resmlp", img_size=32).state_dict()
    with pytest.raises(RunError, match="weights of another resolution, to which they cannot be resampled"):
        load_fitted(create_model("resmlp", img_size=48), source)
    convnet = create_model("patchconvnet", img_size=64).state_dict()
    assert load_fitted(create_model("patchconvnet", img_size=96), convnet) == []
    fixed = create_model("deit3", img_size=48, position="sincos")
    table = fixed.pos_embed.clone()
    load_fitted(fixed, create_model("deit3", img_size=32, position="sincos").state_dict())
    assert torch.equal(fixed.pos_embed, table)
