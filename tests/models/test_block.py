"""The kernels of a transformer block against float64, and the block with them against the block without."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import activations
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from benchmarks.kernel_traffic import TRAFFIC
from deit_fast.models import block, block_ops
from deit_fast.models.block import FusedBlock, can_fuse
from deit_fast.models.block_ops import Kept, Norm, add, add_norm, gelu, norm, split_heads
from deit_fast.models.stochastic_depth import SubsetBlock, keep_subset
from tests.interpreter import DEVICE, INTERPRETED, Accesses, case, run_interpreted

pytest.importorskip("triton")

FP32, BF16 = torch.float32, torch.bfloat16
SAMPLES, TOKENS = 5, 3


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each takes several rows."""
    monkeypatch.setattr(block_ops, "PROGRAMS", 4)
    monkeypatch.setattr(block_ops, "STRIPES", 2)
    monkeypatch.setattr(block, "_ON_CPU", INTERPRETED)


@pytest.mark.soak
def test_the_cases_in_the_interpreter() -> None:
    run_interpreted(__file__)


def random(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype).requires_grad_()


def draw(subset: bool, count: int) -> Kept:
    """`count` samples in a random order, or all; each with a scale of its own."""
    if not subset:
        return Kept(torch.rand(SAMPLES).add(0.5).to(DEVICE), None)
    return Kept(torch.rand(count).add(0.5).to(DEVICE), torch.randperm(SAMPLES).to(DEVICE, torch.int32))


def rows_of(kept: Kept) -> Tensor:
    return torch.arange(SAMPLES) if kept.place is None else kept.place.cpu().long().argsort()[: len(kept.scale)]


def doubles(*given: Tensor | None) -> list[Any]:
    return [None if each is None else each.detach().cpu().double().requires_grad_() for each in given]


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Up to a few roundings to `dtype`, of which Triton's interpreter cuts the digits off."""
    error = (found.detach().cpu().double() - expected.detach()).abs().max() / expected.detach().abs().max()
    assert error < (1e-6 if dtype == FP32 else 1.2e-2), error


def gradients(results: list[Tensor], inputs: list[Tensor | None], grads: list[Tensor]) -> list[Tensor]:
    wanted = [each for each in inputs if each is not None]
    return list(torch.autograd.grad(results, wanted, [g.to(r) for g, r in zip(grads, results, strict=True)]))


@case
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("subset", [False, True], ids=["all", "subset"])
@pytest.mark.parametrize(("width", "scaled"), [(48, True), (64, False)], ids=["LayerScale", "plain"])
def test_stream_norm_and_branch(dtype: torch.dtype, subset: bool, width: int, scaled: bool) -> None:
    """norm, add_norm and add in a row, as a block has them, with a product for each branch."""
    torch.manual_seed(0)
    first, second = draw(subset, 3), draw(subset, 2)
    stream = random(SAMPLES, TOKENS, width)
    left, right = (random(width, width, dtype=dtype) for _ in range(2))
    weights = [random(width) for _ in range(4)]
    biases = [random(width, dtype=dtype) for _ in range(2)]
    gammas = [random(width) if scaled else None for _ in range(2)]
    inputs = [stream, left, right, *weights, *biases, *gammas]

    def ours() -> list[Tensor]:
        x, h = norm(stream, first, Norm(weights[0], weights[1], 1e-6, dtype))
        y = F.linear(h, left, biases[0].detach())
        x, h2 = add_norm(x, y, biases[0], gammas[0], first, second, Norm(weights[2], weights[3], 1e-6, dtype))
        y2 = F.linear(h2, right, biases[1].detach())
        return [add(x, y2, biases[1], gammas[1], second), h, h2]

    expected_inputs = doubles(*inputs)

    def plain() -> list[Tensor]:
        x, a, b, *rest = expected_inputs
        w, (c, d), g = rest[:4], rest[4:6], rest[6:]
        seen = []
        for kept, product, bias, gamma, norms in ((first, a, c, g[0], w[:2]), (second, b, d, g[1], w[2:])):
            rows = rows_of(kept)
            seen.append(F.layer_norm(x[rows], (width,), *norms, 1e-6))
            y = F.linear(seen[-1], product, bias)
            y = (y if gamma is None else y * gamma) * kept.scale.cpu().double()[:, None, None]
            x = x.index_add(0, rows, y)
        return [x, *seen]

    before = stream.detach().clone()
    found, expected = ours(), plain()
    assert torch.equal(stream, before)
    grads = [torch.randn(each.shape) for each in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert_near(mine, theirs, dtype)
    for each, mine, theirs in zip(
        [each for each in inputs if each is not None],
        gradients(found, inputs, grads),
        gradients(expected, expected_inputs, grads),
        strict=True,
    ):
        assert mine.dtype == each.dtype
        assert_near(mine, theirs, dtype)


@case
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_gives_the_gradient_of_the_bias_before(dtype: torch.dtype, approximate: str) -> None:
    torch.manual_seed(0)
    given, bias = random(5, 15, 200, dtype=dtype), random(200, dtype=dtype)
    (double,) = doubles(given)
    result, expected = gelu(given, bias, approximate), F.gelu(double, approximate=approximate)
    grad = torch.randn(given.shape).to(dtype)
    mine, sums = gradients([result], [given, bias], [grad])
    (theirs,) = gradients([expected], [double], [grad])
    assert_near(mine, theirs, dtype)
    assert_near(sums, theirs.sum((0, 1)), dtype)
    extreme = torch.tensor([[-40.0, -6.0, 0.0, 6.0, 40.0]], device=DEVICE, requires_grad=True)
    (slope,) = torch.autograd.grad(gelu(extreme, bias[:5].detach(), approximate).sum(), extreme)
    torch.testing.assert_close(slope.cpu(), torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]]), rtol=0, atol=1e-6)


@case
@pytest.mark.parametrize("alike", [True, False], ids=["as attention gives them", "in three layouts"])
def test_heads_are_split_and_their_gradients_merged(alike: bool) -> None:
    torch.manual_seed(0)
    qkv, bias = random(4, 5, 3 * 160, dtype=BF16), random(160 * 3)
    parts = split_heads(qkv, bias, 2)
    views = qkv.detach().view(4, 5, 3, 2, 80)
    assert all(torch.equal(part, views[:, :, each].transpose(1, 2)) for each, part in enumerate(parts))
    grads = [torch.randn(4, 5, 2, 80, device=DEVICE).to(BF16).transpose(1, 2) for _ in range(3)]
    if not alike:
        grads = [grads[0].contiguous(), grads[1], grads[2].transpose(2, 3).contiguous().transpose(2, 3)]
    merged, sums = torch.autograd.grad(parts, [qkv, bias], grads)
    expected = torch.stack(grads, 2).permute(0, 3, 2, 1, 4).reshape(4, 5, 480)
    assert torch.equal(merged, expected)
    assert_near(sums, expected.cpu().double().sum((0, 1)), FP32)


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """Calls a function with the kernels and without."""

    def call(function: Callable[[], Any]) -> tuple[Any, Any]:
        fused = function()
        with monkeypatch.context() as patch:
            for module in (block, "deit_fast.models.stochastic_depth"):
                patch.setattr(*((module, "can_fuse") if module is block else (f"{module}.can_fuse",)), lambda *_: False)
            return fused, function()

    return call


BLOCKS = {
    "dense": (FusedBlock, 0.0, 0.5, nn.GELU),
    "bernoulli": (FusedBlock, 0.4, 0.5, nn.GELU),
    "subset": (SubsetBlock, 0.4, 0.5, nn.GELU),
    "subset, no LayerScale, tanh": (SubsetBlock, 0.4, None, activations.GELUTanh),
}


@case
@pytest.mark.parametrize(("kind", "rate", "scale", "activation"), BLOCKS.values(), ids=BLOCKS)
def test_a_block_with_them_is_the_block_without(
    both: Any, kind: type[Block], rate: float, scale: float | None, activation: type[nn.Module]
) -> None:
    """From the same seed: stochastic depth draws the same samples."""
    torch.manual_seed(0)
    one = kind(32, 4, qkv_bias=True, init_values=scale, drop_path=rate, act_layer=activation).to(DEVICE).train()
    for parameter in one.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, weight = random(5, 3, 32), torch.randn(5, 3, 32, device=DEVICE)

    def call() -> list[Tensor]:
        torch.manual_seed(1)
        y = one(x)
        return [y, *torch.autograd.grad((y * weight).sum(), [x, *one.parameters()])]

    fused, plain = both(call)
    assert type(fused[0].grad_fn).__name__ == "_AddBackward" != type(plain[0].grad_fn).__name__
    for mine, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-6)


@case
def test_under_autocast_it_is_as_near_to_float32(both: Any) -> None:
    torch.manual_seed(0)
    one = SubsetBlock(32, 4, qkv_bias=True, init_values=0.5, drop_path=0.4).to(DEVICE).train()
    for parameter in one.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, weight = random(5, 4, 32), torch.randn(5, 4, 32, device=DEVICE)

    def call(rounded: bool = True) -> list[Tensor]:
        torch.manual_seed(1)
        with torch.autocast(DEVICE.type, BF16, enabled=rounded):
            y = one(x)
        return [y, *torch.autograd.grad((y * weight).sum(), [x, *one.parameters()])]

    (fused, plain), exact = both(call), call(False)

    def error(found: list[Tensor]) -> float:
        gaps = [(a - b).norm() / b.norm() for a, b in zip(found, exact, strict=True)]
        return torch.stack(gaps).mean().item()

    assert 0 < error(fused) < (2.5 if INTERPRETED else 1.3) * error(plain)  # Triton's interpreter cuts digits off


def test_which_blocks_they_take() -> None:
    def fits(given: Block | None = None, x: Tensor | None = None, **changes: Any) -> bool:
        options = {"dim": 32, "num_heads": 4, "qkv_bias": True} | changes
        return can_fuse(given or FusedBlock(**options), torch.zeros(2, 3, 32, device=DEVICE) if x is None else x)

    if INTERPRETED or torch.cuda.is_available():
        assert fits()
        assert fits(init_values=1e-4, drop_path=0.1)
    else:
        assert not can_fuse(FusedBlock(32, 4, qkv_bias=True), torch.zeros(2, 3, 32))
        return
    assert not fits(qkv_bias=False)
    assert not fits(qk_norm=True)
    assert not fits(attn_drop=0.1)
    assert not fits(proj_drop=0.1)
    assert not fits(act_layer=nn.ReLU)
    assert not fits(x=torch.zeros(2, 3, 32, dtype=BF16, device=DEVICE))
    assert not fits(x=torch.zeros(2, 3, 3, 32, device=DEVICE))
    other = FusedBlock(32, 4, qkv_bias=True)
    other.mlp.fc1 = type("Adapted", (nn.Linear,), {})(32, 128)
    assert not fits(other)
    slow = FusedBlock(32, 4, qkv_bias=True)
    slow.attn.fused_attn = False
    assert not fits(slow)


@pytest.mark.skipif(not INTERPRETED, reason="only the interpreter can count")
@pytest.mark.parametrize("subset", [False, True], ids=["all", "subset"])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "LayerScale"])
def test_the_bytes_that_they_move(monkeypatch: pytest.MonkeyPatch, subset: bool, scaled: bool) -> None:
    """What the kernels read and write, address by address, is what benchmarks/kernel_traffic.py says."""
    torch.manual_seed(0)
    width, moved = 64, {}
    for name in TRAFFIC:
        operator = getattr(block_ops, f"_{name.rstrip('_')}")

        def counted(*given: Any, name: str = name, operator: Any = operator) -> Any:
            with monkeypatch.context() as patch:
                accesses = Accesses(patch)
                results = operator(*given)
            names = [argument.name for argument in operator.default._schema.arguments]
            moved[name] = accesses.distinct, TRAFFIC[name](results=results, **dict(zip(names, given, strict=True)))
            return results

        monkeypatch.setattr(block_ops, f"_{name.rstrip('_')}", counted)
    one = SubsetBlock(width, 4, qkv_bias=True, init_values=0.1 if scaled else None, drop_path=0.5 * subset).train()
    # Of four each keeps two, and one of those is the other's, too: as many as the formulas expect.
    places = iter([torch.tensor([0, 1, 2, 3]), torch.tensor([0, 2, 1, 3])])

    def keep(drop_path: nn.Module, x: Tensor) -> Kept:
        kept = keep_subset(drop_path, x)
        return kept if kept.place is None else Kept(kept.scale, next(places).int())

    with torch.autocast("cpu", BF16):
        block.fused_forward(one, random(4, TOKENS, width), keep).sum().backward()
    assert moved.keys() == TRAFFIC.keys()
    for name, (found, said) in moved.items():
        assert found == pytest.approx(said, rel=0.001), name
