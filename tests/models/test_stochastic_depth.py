"""Subset stochastic depth against timm's block and Bernoulli drop path: in value, in distribution and in work."""

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deit_fast.infer.create import create_model
from deit_fast.models.build import check_drop_path, drops_subset
from deit_fast.models.stochastic_depth import SubsetBlock, draw_rows, keep_count, residual_subset
from deit_fast.recipe.sections import Model
from deit_fast.recipe.table import RECIPES, get_recipe
from deit_fast.runtime.errors import RecipeError
from deit_fast.training.run import train
from tests.training.test_step import batch, make, weights
from tests.training.test_train import WORDS, command, environment

NANO = "deit3_nano_patch4"


def pair(rate: float) -> tuple[SubsetBlock, Block]:
    """Our block and timm's with the same weights."""
    torch.manual_seed(0)
    ours = SubsetBlock(32, 4, qkv_bias=True, init_values=0.5, drop_path=rate)
    theirs = Block(32, 4, qkv_bias=True, init_values=0.5, drop_path=rate)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.0, False), (0.5, False)])
def test_without_drops_it_is_timms_block_bit_for_bit(rate: float, training: bool) -> None:
    ours, theirs = (block.train(training) for block in pair(rate))
    x = torch.randn(6, 5, 32, requires_grad=True)
    outputs = [ours(x), theirs(x)]
    assert torch.equal(*outputs)
    grads = [torch.autograd.grad(y.square().sum(), [x, *block.parameters()])
             for block, y in zip((ours, theirs), outputs, strict=True)]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_masks_in_evaluation_only() -> None:
    ours, theirs = pair(0.5)
    x, mask = torch.randn(2, 5, 32), torch.zeros(5, 5)
    assert torch.equal(ours.eval()(x, attn_mask=mask), theirs.eval()(x, attn_mask=mask))
    with pytest.raises(ValueError, match="attention masks"):
        ours.train()(x, attn_mask=mask)


@pytest.mark.parametrize(
    ("size", "rate", "keep"),
    [(256, 0.2, 205), (64, 0.6, 26), (8, 0.5, 4), (4, 0.1, 4), (1, 0.9, 1), (3, 0.9, 1), (8, 0.0, 8), (20, 0.45, 11)],
)
def test_exactly_the_kept_share_is_computed_and_scaled(size: int, rate: float, keep: int) -> None:
    assert keep_count(size, rate) == keep
    seen = []

    def branch(kept: Tensor) -> Tensor:
        seen.append(kept)
        return kept.new_ones(kept.shape)

    x = torch.randn(size, 3)
    y = residual_subset(x, rate, branch)
    assert [len(kept) for kept in seen] == [keep]
    added = (y - x)[:, 0]
    assert (added != 0).sum() == keep
    torch.testing.assert_close(added[added != 0], torch.full((keep,), size / keep))
    unchanged = added == 0
    assert torch.equal(y[unchanged], x[unchanged])


def test_every_sample_and_every_pair_is_kept_as_often() -> None:
    size, keep, draws = 10, 4, 20_000
    torch.manual_seed(0)
    kept = torch.zeros(draws, size)
    for row in kept:
        row[draw_rows(size, keep, row.device)] = 1
    assert torch.all(kept.sum(1) == keep)
    share = keep / size
    sigma = (share * (1 - share) / draws) ** 0.5
    assert (kept.mean(0) - share).abs().max() < 4 * sigma  # 10 samples
    both = share * (keep - 1) / (size - 1)
    pairs = (kept.T @ kept / draws)[~torch.eye(size, dtype=torch.bool)]
    assert (pairs - both).abs().max() < 4.5 * (both * (1 - both) / draws) ** 0.5  # 45 pairs


def test_gradients_flow_through_kept_samples_only() -> None:
    x = torch.full((8, 1), 2.0, requires_grad=True)
    torch.manual_seed(3)
    rows = draw_rows(8, 4, x.device)
    torch.manual_seed(3)
    (grad,) = torch.autograd.grad(residual_subset(x, 0.5, torch.square).sum(), x)
    expected = torch.ones(8, 1)
    expected[rows] += 2 * 2 * 2.0  # B / keep, derivative of the square
    assert torch.equal(grad, expected)


def test_gradients_are_those_of_plain_indexing() -> None:
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)

    def seeded(x: Tensor, weight: Tensor) -> Tensor:
        torch.manual_seed(0)
        return residual_subset(x.sin(), 0.5, lambda kept: (kept @ weight).tanh())

    torch.autograd.gradcheck(seeded, (x, weight))
    torch.autograd.gradgradcheck(seeded, (x, weight))


def moments(model: nn.Module, images: Tensor, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and standard error over draws of [outputs, gradients] of a model in training."""
    torch.manual_seed(seed)
    values = []
    for _ in range(draws):
        logits = model(images)
        grads = torch.autograd.grad(logits.sum(), [p for p in model.parameters() if p.requires_grad])
        values.append(torch.cat([logits.detach().flatten(), *(g.flatten()[:16] for g in grads)]))
    stacked = torch.stack(values).double()
    return stacked.mean(0), stacked.std(0) / draws**0.5


def test_means_of_outputs_and_gradients_are_those_of_bernoulli_drop_path() -> None:
    """One block of each kind, with the same weights, at a batch of which the rate keeps a whole number."""
    ours, theirs = pair(0.4)
    images = torch.randn(5, 3, 32)
    (mean, error), (expected, expected_error) = (
        moments(block.train(), images, 3000, seed) for seed, block in enumerate((ours, theirs))
    )
    sigma = (error**2 + expected_error**2).sqrt()
    z = (mean - expected) / sigma.clamp_min(1e-9)
    # Of 700 correlated values a few stray beyond 3 sigma by chance; a scale wrong by 5 % moves a fifth of them there.
    assert len(z) > 500
    assert z.square().mean().sqrt() < 1.5
    assert (z.abs() > 3).double().mean() < 0.02
    assert z.abs().max() < 5


def test_variance_of_a_sample_and_of_the_batch() -> None:
    """p / (1 - p) for a sample as Bernoulli's; a whole batch of equal samples does not vary at all."""
    torch.manual_seed(0)
    x = torch.zeros(10, 1)
    outputs = torch.stack([residual_subset(x, 0.6, torch.ones_like) for _ in range(20_000)]).squeeze(-1)
    assert outputs.var(0).mean().item() == pytest.approx(0.6 / 0.4, rel=0.02)
    assert torch.allclose(outputs.sum(1), torch.tensor(10.0))
    covariance = outputs.T.cov()
    apart = covariance[~torch.eye(10, dtype=torch.bool)]
    assert apart.mean().item() == pytest.approx(-0.6 / 0.4 / 9, rel=0.02)


@pytest.mark.parametrize("rate", [0.2, 0.45, 0.6])
def test_executed_flops_fall_with_the_rate(rate: float) -> None:
    flops = {}
    for mode in ("bernoulli", "subset"):
        with torch.device("meta"):
            model = create_model("deit3_small_patch16", drop_path=rate, drop_path_mode=mode).train()
            images = torch.empty(20, 3, 224, 224)
            with FlopCounterMode(display=False) as counter:
                model(images).sum().backward()
        flops[mode] = counter.get_total_flops()
    saved = 1 - flops["subset"] / flops["bernoulli"]
    assert 0.95 * rate <= saved <= rate


def test_modes_and_state_dict() -> None:
    kinds: dict[str, Callable[[nn.Module], bool]] = {
        "subset": lambda block: isinstance(block, SubsetBlock),
        "bernoulli": lambda block: not isinstance(block, SubsetBlock),
    }
    for mode, rate, kind in (("auto", 0.1, "subset"), ("auto", 0.05, "bernoulli"), ("auto", 0.0, "bernoulli"),
                             ("subset", 0.05, "subset"), ("bernoulli", 0.6, "bernoulli")):  # fmt: skip
        model = create_model(NANO, img_size=16, drop_path=rate, drop_path_mode=mode)
        assert all(kinds[kind](block) for block in model.blocks)
        assert [p.drop_prob for b in model.blocks for p in (b.drop_path1, b.drop_path2) if isinstance(p, DropPath)] == (
            [rate] * 8 if rate else []
        )
    plain = create_model(NANO, img_size=16)
    assert list(model.state_dict()) == list(plain.state_dict())
    chosen = {name: recipe.model for name, recipe in RECIPES.items() if recipe.model.drop_path_mode == "auto"}
    assert all(drops_subset(model) == (model.drop_path >= 0.1) for model in chosen.values())
    assert RECIPES.keys() - chosen.keys() <= {"finetune_small", "finetune_base", "probe", "scratch_small"}
    with pytest.raises(RecipeError, match=r"model\.drop_path_mode='subsets': expected 'auto', 'subset' or 'bernoulli'"):
        get_recipe("deit3_base_1k_192", ["model.drop_path_mode=subsets"])


def test_checkpointed_blocks_draw_the_same_rows() -> None:
    torch.manual_seed(0)
    model = create_model(NANO, img_size=16, drop_path=0.5, layer_scale=1.0).train()
    images, grads = torch.randn(8, 3, 16, 16), []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(1)
        grads.append(torch.autograd.grad(model(images).square().sum(), model.blocks.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_autocast() -> None:
    model = create_model(NANO, img_size=16, drop_path=0.5, layer_scale=None).train()
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(8, 3, 16, 16)).float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on CPUs needs g++, which is not installed")
def test_it_compiles_once_without_graph_breaks() -> None:
    words = ["model.drop_path=0.5", "optim.name=adamw"]
    _, eager = make(words)
    # Inductor draws from its own generator; with torch's, the compiled step has to be the eager one.
    with torch._inductor.config.patch(fallback_random=True):
        _, compiled = make([*words, "run.compile=on"])
        with torch._dynamo.config.patch(error_on_recompile=True):
            for seed in range(4):
                eager([batch(seed)], 1e-3)
                compiled([batch(seed)], 1e-3)
    torch.testing.assert_close(weights(eager), weights(compiled), rtol=0, atol=1e-4)
    assert torch._dynamo.explain(compiled.objective)(*batch(9)).graph_break_count == 0


def test_a_batch_too_small_for_the_rate_is_refused(folder_data: Path, tmp_path: Path) -> None:
    words = [*WORDS, "run.accumulation=4"]
    with pytest.raises(RecipeError, match=r"model\.drop_path=0\.1: expected a larger batch than 4 .*bernoulli"):
        train(get_recipe("demo_pretrain", words), str(folder_data), tmp_path / "run")
    for word in ("model.drop_path_mode=bernoulli", "model.drop_path=0", "model.train_mode=false"):
        check_drop_path(get_recipe("demo_pretrain", [*words, word]).model, 4)


def test_two_processes_train_with_it(folder_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["model.drop_path=0.4", "schedule.epochs=2"]
    done = subprocess.run(command(folder_data, out, *words, processes=2), env=environment(), capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "result.json").read_text())
    assert (result["step"], result["skipped"]) == (12, 0)
    assert result["loss"] < 1.1  # of log(3) at chance


def test_a_copied_model_keeps_its_blocks() -> None:
    model = create_model(NANO, img_size=16, drop_path=0.5)
    average = copy.deepcopy(model).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(average(images), model.eval()(images))
    assert Model(name=NANO, image_size=16).drop_path_mode == "auto"
