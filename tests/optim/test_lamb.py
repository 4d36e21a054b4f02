import copy
import io
import math

import numpy as np
import pytest
import torch
from timm.optim import Lamb as TimmLamb
from torch import nn

from deit_fast.optim.base import BLOCK, inner_product
from deit_fast.optim.build import build_optimizer
from deit_fast.optim.lamb import Lamb
from deit_fast.recipe.sections import AdamWOptim, LambOptim, Optim, SGDOptim
from tests.oracles.lamb import OracleLamb, assert_converges

SHAPES = [(7,), (16, 7), (1, 5, 3), (3, 2, 4, 4), (), (1,), (129, 65)]
DECAYS = [0.0, 0.05, 0.0, 0.05, 0.0, 0.05, 0.05]


def tensors(seed: int, scale: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for shape in SHAPES]


def groups(params: list[nn.Parameter]) -> list[dict]:
    return [
        {"params": [p for p, wd in zip(params, DECAYS, strict=True) if wd == decay], "weight_decay": decay}
        for decay in (0.0, 0.05)
    ]


@pytest.mark.parametrize("grad_scale", [1e-3, 1.0, 100.0], ids=["unclipped", "near-the-clip", "clipped"])
def test_equals_the_float64_oracle(grad_scale: float) -> None:
    start = tensors(0, 0.1)
    start[5].zero_()  # a zero weight norm: trust ratio 1
    params = [nn.Parameter(t.clone()) for t in start]
    optimizer = Lamb(groups(params), lr=4e-3)
    oracle = OracleLamb([t.numpy() for t in start], DECAYS, lr=4e-3)
    for step in range(20):
        grads = tensors(step + 1, grad_scale)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        oracle.step([g.numpy() for g in grads])
    for param, expected in zip(params, oracle.params, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), expected, rtol=1e-5, atol=1e-7)


def test_decay_that_nearly_cancels_the_direction() -> None:
    """The update is a thousandth of its two parts, so the trust ratio is some ten thousands."""
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(300, 70, generator=generator)
    grad += grad.sign()  # so that eps, which fp32 rounds, does not matter
    start = -grad.sign() * (9.99 + 0.001 * torch.rand(grad.shape, generator=generator))
    param = nn.Parameter(start.clone())
    param.grad = grad.clone()
    Lamb([param], lr=0.1, weight_decay=0.1).step()
    oracle = OracleLamb([start.numpy()], [0.1], lr=0.1)
    oracle.step([grad.numpy()])
    np.testing.assert_allclose(param.detach().numpy(), oracle.params[0], rtol=1e-4)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 300_007])
def test_inner_products_lose_little(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    a, b = (torch.randn(size, generator=generator) for _ in range(2))
    exact = a.numpy().astype(np.float64) * b.numpy()
    assert inner_product(a, b) == pytest.approx(exact.sum(), abs=1e-7 * np.abs(exact).sum())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_inner_products_overflow_without_a_warning(size: int) -> None:
    huge = torch.full((size,), 1e30)
    assert inner_product(huge, huge) == math.inf
    assert inner_product(huge, -huge) == -math.inf
    assert math.isnan(inner_product(torch.full((size,), math.inf), torch.zeros(size)))


@pytest.mark.parametrize(("grad_scale", "clips"), [(1e-3, False), (0.5, True)], ids=["unclipped", "clipped"])
def test_equals_timms_lamb(grad_scale: float, clips: bool) -> None:
    start = tensors(0, 0.1)
    start[1].zero_()  # with a trust ratio, and none to take it of
    ours = [nn.Parameter(t.clone()) for t in start]
    theirs = [nn.Parameter(t.clone()) for t in start]
    pair = Lamb(groups(ours), lr=4e-3, eps=1e-8), TimmLamb(groups(theirs), lr=4e-3, eps=1e-8)
    for step in range(10):
        for params in (ours, theirs):
            for param, grad in zip(params, tensors(step + 1, grad_scale), strict=True):
                param.grad = grad
            params[3].grad = torch.zeros(SHAPES[3])  # its update is weight decay alone
        for optimizer in pair:
            optimizer.step()
        assert (pair[0].grad_norm > 1) == clips
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


class Attention(nn.Module):
    """What a block of deit3-jax keeps in three tensors, in one; and a weight of another kind."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        # Thirds of different size, so that three trust ratios are not one.
        rows = [scale * torch.randn(8, 8, generator=generator) for scale in (0.01, 0.1, 1.0)]
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(8, 24)
        self.attn.proj = nn.Linear(8, 8)
        with torch.no_grad():
            self.attn.qkv.weight.copy_(torch.cat(rows))
            self.attn.proj.weight.copy_(torch.randn(8, 8, generator=generator))


@pytest.mark.parametrize("split", [True, False])
def test_split_qkv_is_three_tensors_to_the_oracle(split: bool) -> None:
    model = Attention()
    ema = copy.deepcopy(model)
    weights = {name: param.detach().numpy().copy() for name, param in model.named_parameters()}
    start, decays = [], []
    for name, weight in weights.items():
        parts = np.split(weight, 3) if split and name == "attn.qkv.weight" else [weight]
        start += parts
        decays += [0.05 if name.endswith("weight") else 0.0] * len(parts)
    optimizer = build_optimizer(LambOptim(lr=1e-2, split_qkv=split, ema_decay=0.5), model, ema)
    oracle = OracleLamb(start, decays, lr=1e-2)
    mean = np.concatenate([weight.ravel() for weight in oracle.params])
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator)
        grads = [param.grad.numpy().copy() for param in model.parameters()]
        if split:
            grads[:1] = np.split(grads[0], 3)
        optimizer.step()
        oracle.step(grads)
        mean = 0.5 * mean + 0.5 * np.concatenate([weight.ravel() for weight in oracle.params])
    expected = np.concatenate([weight.ravel() for weight in oracle.params])
    np.testing.assert_allclose(flat(model), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(flat(ema), mean, rtol=1e-5, atol=1e-7)
    state = optimizer.state_dict()["state"]
    assert [tuple(entry["exp_avg"].shape) for entry in state.values()].count((24, 8)) == 1
    assert len(state) == 4


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def test_reports_the_norm_before_clipping() -> None:
    param = nn.Parameter(torch.ones(4))
    param.grad = torch.full((4,), 3.0)
    optimizer = Lamb([param], lr=0.1)
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(6.0)
    assert optimizer.skipped.item() == 0


@pytest.mark.parametrize("kind", [LambOptim, AdamWOptim, SGDOptim])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_changes_nothing(kind: type[Optim], bad: float) -> None:
    """Parameters, moments and step count: training continues as if the step had not been."""

    def run(poison: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        optimizer = build_optimizer(kind(lr=1e-2, weight_decay=0.1), model)
        for step in range(4):
            if poison and step in (0, 2):
                for param in model.parameters():
                    param.grad = torch.full_like(param, bad)
                optimizer.step()
                assert optimizer.skipped.item() == 1
            generator = torch.Generator().manual_seed(step)
            for param in model.parameters():
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
            assert optimizer.skipped.item() == 0
        return [p.detach() for p in model.parameters()]

    for clean, poisoned in zip(run(False), run(True), strict=True):
        assert torch.equal(clean, poisoned)


def test_resumes_bit_identically() -> None:
    def grads(step: int, params: list[nn.Parameter]) -> None:
        for param, grad in zip(params, tensors(step, 1.0), strict=True):
            param.grad = grad

    through = [nn.Parameter(t.clone()) for t in tensors(0, 0.1)]
    optimizer = Lamb(groups(through), lr=1e-2)
    for step in range(6):
        grads(step, through)
        optimizer.step()
        if step == 2:
            saved = {"params": [p.detach().clone() for p in through], "optimizer": optimizer.state_dict()}
            saved = torch.load(_roundtrip(saved), weights_only=True)
    again = [nn.Parameter(t) for t in saved["params"]]
    resumed = Lamb(groups(again), lr=1e-2)
    resumed.load_state_dict(saved["optimizer"])
    for step in range(3, 6):
        grads(step, again)
        resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(through, again, strict=True))


def _roundtrip(state: dict):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_converges_on_a_regression() -> None:
    assert_converges(Lamb, 256, 300)


def test_learning_rate_is_a_tensor_that_can_be_set() -> None:
    model = nn.Linear(3, 2)
    for kind in (LambOptim, AdamWOptim, SGDOptim):
        optimizer = build_optimizer(kind(lr=1e-2), model)
        for group in optimizer.param_groups:
            group["lr"].fill_(0.0)
        before = [p.detach().clone() for p in model.parameters()]
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_refuses_half_precision_weights() -> None:
    param = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match="float32"):
        Lamb([param], lr=0.1).step()


@pytest.mark.parametrize("beside", [1, 5000], ids=["alone", "beside-a-larger-one"])
def test_splits_of_rows_that_are_not_in_order_are_refused(beside: int) -> None:
    """A transposed matrix's thirds are scattered over its memory: the norms of other numbers would be taken."""
    for shape, order in (((72, 24), (1, 0)), ((72, 6, 4), (1, 0, 2))):
        start = torch.randn([shape[axis] for axis in np.argsort(order)])
        param, other = nn.Parameter(start.permute(order)), nn.Parameter(torch.randn(beside))
        assert param.shape == shape
        optimizer = Lamb([param, other], 1e-2, weight_decay=0.05, splits={param: [24, 24, 24]}, fused=False)
        before = param.detach().clone()
        param.grad, other.grad = torch.randn_like(param), torch.randn_like(other)
        with pytest.raises(ValueError, match=r"splits of a parameter of .*: expected its rows in order"):
            optimizer.step()
        assert torch.equal(param, before)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_splits_of_rows_in_order_are_parameters_of_their_own(memory: torch.memory_format) -> None:
    """Whatever the order within a row, and beside a larger parameter."""
    start = [torch.randn(6, 3, 4, 4), torch.randn(5000)]
    grads = [torch.randn(6, 3, 4, 4), torch.randn(5000)]
    whole = [nn.Parameter(start[0].clone(memory_format=memory)), nn.Parameter(start[1].clone())]
    parts = [nn.Parameter(part.clone()) for part in (*start[0].split([2, 3, 1]), start[1])]
    one = Lamb(whole, 1e-2, weight_decay=0.05, splits={whole[0]: [2, 3, 1]}, fused=False)
    several = Lamb(parts, 1e-2, weight_decay=0.05, fused=False)
    for _ in range(3):
        for param, grad in zip(whole, grads, strict=True):
            param.grad = grad.clone()
        for param, grad in zip(parts, (*grads[0].split([2, 3, 1]), grads[1]), strict=True):
            param.grad = grad.clone()
        one.step()
        several.step()
    torch.testing.assert_close(whole[0].data, torch.cat([part.data for part in parts[:3]]), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(whole[1].data, parts[3].data, rtol=1e-6, atol=1e-7)
