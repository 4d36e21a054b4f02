"""The Triton kernels of LAMB: on a GPU where there is one, and in Triton's interpreter (tests/interpreter.py)."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deit_fast.optim.base import WeightAverage
from deit_fast.optim.lamb import Lamb
from tests.interpreter import DEVICE, INTERPRETED, case, run_interpreted
from tests.oracles.lamb import OracleLamb, assert_converges

pytest.importorskip("triton")

# One chunk, a chunk and a bit, several chunks; sizes that are and are not multiples of 4; a scalar; nothing at all.
SHAPES = [(7,), (16, 7), (1, 5, 3), (3, 2, 4, 4), (), (129, 65), (4096,), (4097,), (3, 4096), (0,), *[(12,)] * 20]
DECAYS = [0.0 if index % 3 == 0 else 0.05 for index in range(len(SHAPES))]
ALIGNED = [(8,), (128, 96), (4096,), (4100,)]


def tensors(seed: int, scale: float, shapes: list[tuple[int, ...]] = SHAPES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for shape in shapes]


def parameters(start: list[torch.Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(t.clone().to(DEVICE)) for t in start]


def groups(params: list[nn.Parameter]) -> list[dict]:
    return [
        {"params": [p for p, wd in zip(params, DECAYS, strict=False) if wd == decay], "weight_decay": decay}
        for decay in (0.0, 0.05)
    ]


def give(params: list[nn.Parameter], grads: list[torch.Tensor]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone().to(DEVICE)


def train(optimizer: Lamb, params: list[nn.Parameter], steps: range, scale: float = 0.3) -> None:
    for step in steps:
        give(params, tensors(step + 1, scale, [tuple(p.shape) for p in params]))
        optimizer.step()


def flat(values: list) -> torch.Tensor:
    return torch.cat([v.detach().cpu().flatten() for v in values])


@pytest.mark.soak
def test_the_cases_in_the_interpreter() -> None:
    run_interpreted(__file__, str(Path(__file__).with_name("test_lamb_copy.py")))


@case
@pytest.mark.parametrize("grad_scale", [1e-4, 100.0], ids=["unclipped", "clipped"])
def test_equals_the_float64_oracle(grad_scale: float) -> None:
    start = tensors(0, 0.1)
    start[1].zero_()  # zero weight norm, in the group that decays: trust ratio 1
    params = parameters(start)
    optimizer = Lamb(groups(params), lr=torch.tensor(4e-3, device=DEVICE), fused=True)
    oracle = OracleLamb([t.numpy() for t in start], DECAYS, lr=4e-3)
    for step in range(6):
        grads = tensors(step + 1, grad_scale)
        grads[2].zero_()  # v is 0 as well
        give(params, grads)
        optimizer.step()
        oracle.step([g.numpy() for g in grads])
        norm = np.sqrt(sum((g.numpy().astype(np.float64) ** 2).sum() for g in grads))
        assert optimizer.grad_norm.item() == pytest.approx(norm, rel=1e-6)
        assert all(torch.equal(p.grad.cpu(), g) for p, g in zip(params, grads, strict=True))
    for param, expected in zip(params, oracle.params, strict=True):
        np.testing.assert_allclose(param.detach().cpu().numpy(), expected, rtol=1e-5, atol=1e-7)


@case
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.95)])
@pytest.mark.parametrize("shapes", [SHAPES, ALIGNED], ids=["odd", "aligned"])
def test_equals_the_torch_path(shapes: list, betas: tuple[float, float], max_grad_norm: float | None) -> None:
    results = []
    for fused in (False, True):
        params = parameters(tensors(0, 0.1, shapes))
        averages = [p.detach().clone() for p in params]
        average = WeightAverage(params, averages, 0.9)
        optimizer = Lamb(
            groups(params), lr=1e-2, betas=betas, max_grad_norm=max_grad_norm, average=average, fused=fused
        )
        train(optimizer, params, range(4))
        state = [value for p in params if p.numel() for value in optimizer.state[p].values()]
        results.append([flat(params), flat(averages), flat(state), flat([g["step"] for g in optimizer.param_groups])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@case
def test_two_runs_give_the_same_bits() -> None:
    runs = []
    for _ in range(2):
        params = parameters(tensors(0, 0.1))
        train(Lamb(groups(params), lr=1e-2, fused=True), params, range(3))
        runs.append(flat(params))
    assert torch.equal(*runs)


@case
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_changes_nothing(bad: float) -> None:
    runs = []
    for poison in (False, True):
        params = parameters(tensors(0, 0.1))
        averages = [p.detach().clone() for p in params]
        optimizer = Lamb(groups(params), lr=1e-2, average=WeightAverage(params, averages, 0.9), fused=True)
        for step in range(3):
            if poison and step in (0, 2):
                grads = tensors(99, 1.0)
                grads[5][3, 4] = bad
                give(params, grads)
                optimizer.step()
                assert optimizer.skipped.item() == 1
                assert not torch.isfinite(optimizer.grad_norm)
            train(optimizer, params, range(step, step + 1))
            assert optimizer.skipped.item() == 0
        runs.append(flat([*params, *averages, *(g["step"] for g in optimizer.param_groups)]))
    assert torch.equal(*runs)


@case
def test_moves_the_average_of_every_weight() -> None:
    """With the weights after the step, and also where a weight has no gradient this time."""
    params = parameters(tensors(0, 0.1))
    averages = [p.detach() + 1.0 for p in params]
    expected = flat(averages)
    optimizer = Lamb(groups(params), lr=1e-2, average=WeightAverage(params, averages, 0.75), fused=True)
    for step in range(3):
        give(params, tensors(step, 0.1))
        params[3].grad = params[6].grad = None
        optimizer.step()
        expected = 0.75 * expected + 0.25 * flat(params)
    torch.testing.assert_close(flat(averages), expected)


@case
def test_which_gradients_exist_may_change() -> None:
    """Tables follow: tensors come and go, and land at other addresses."""
    results = []
    for fused in (False, True):
        params = parameters(tensors(0, 0.1))
        optimizer = Lamb(groups(params), lr=1e-2, fused=fused)
        optimizer.step()  # none at all
        for step in range(4):
            give(params, tensors(step, 0.1))
            for index in range(step, len(params), 4):
                params[index].grad = None
            params[5].data = params[5].data.clone()
            optimizer.step()
        results.append(flat(params))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


@case
@pytest.mark.parametrize("first", [False, True], ids=["torch-to-triton", "triton-to-torch"])
def test_checkpoints_interchange(first: bool) -> None:
    start = tensors(0, 0.1)
    params = parameters(start)
    optimizer = Lamb(groups(params), lr=1e-2, fused=first)
    train(optimizer, params, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    results = []
    for fused in (first, not first):
        again = parameters([p.detach() for p in params])
        resumed = Lamb(groups(again), lr=1e-2, fused=fused)
        resumed.load_state_dict(copy.deepcopy(saved))
        train(resumed, again, range(2, 4))
        results.append(flat(again))
        assert set(resumed.state[again[0]]) == {"exp_avg", "exp_avg_sq"}
        assert [g["step"].item() for g in resumed.param_groups] == [4, 4]
    train(optimizer, params, range(2, 4))
    assert torch.equal(results[0], flat(params))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


@case
def test_layouts_that_differ() -> None:
    """A channels-last weight, with a contiguous gradient and contiguous moments from a checkpoint."""
    start = tensors(0, 0.1, [(8, 3, 5, 5)])
    contiguous = parameters(start)
    reference = Lamb(contiguous, lr=1e-2, weight_decay=0.1, fused=True)
    train(reference, contiguous, range(2))
    for fused in (False, True):
        params = [nn.Parameter(t.to(DEVICE, memory_format=torch.channels_last)) for t in start]
        optimizer = Lamb(params, lr=1e-2, weight_decay=0.1, fused=fused)
        train(optimizer, params, range(1))
        saved = copy.deepcopy(optimizer.state_dict())
        for key, value in saved["state"][0].items():
            saved["state"][0][key] = value.contiguous()
        optimizer.load_state_dict(saved)
        train(optimizer, params, range(1, 2))
        torch.testing.assert_close(params[0], contiguous[0], rtol=1e-5, atol=1e-7)


@case
def test_thirds_and_a_rate_for_each_group() -> None:
    """Rows that are tensors of their own to the oracle, in groups whose learning rates differ."""
    start = tensors(0, 0.1, [(3 * 70, 65), (12,)])
    start[0][:70] *= 10
    params = parameters(start)
    averages = [p.detach().clone() for p in params]
    fast, slow = torch.tensor([4e-3, 1e-3], device=DEVICE)
    pair = [{"params": [params[0]], "weight_decay": 0.05, "lr": fast}, {"params": [params[1]], "lr": slow}]
    thirds = {params[0]: [70, 70, 70]}
    optimizer = Lamb(pair, 1.0, average=WeightAverage(params, averages, 0.0), splits=thirds, fused=True)
    parts = [*start[0].numpy().reshape(3, 70, 65), start[1].numpy()]
    oracles = [OracleLamb(parts, [0.05, 0.05, 0.05, 0.0], lr=rate) for rate in (4e-3, 1e-3)]
    for step in range(3):
        train(optimizer, params, range(step, step + 1))
        grads = [p.grad.cpu() for p in params]
        for oracle in oracles:
            oracle.step([*grads[0].numpy().reshape(3, 70, 65), grads[1].numpy()])
    expected = np.concatenate([w.ravel() for w in (*oracles[0].params[:3], oracles[1].params[3])])
    for moved in (params, averages):  # averages that forget at once
        np.testing.assert_allclose(flat(moved), expected, rtol=1e-5, atol=1e-7)


@case
def test_splits_of_rows_that_are_not_in_order_are_refused() -> None:
    param = nn.Parameter(torch.randn(24, 72, device=DEVICE).T)
    optimizer = Lamb([param], 1e-2, weight_decay=0.05, splits={param: [24, 24, 24]}, fused=True)
    before = param.detach().clone()
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match=r"splits of a parameter of \(72, 24\), strides \(1, 72\)"):
        optimizer.step()
    assert torch.equal(param, before)


@case
def test_unaligned_views() -> None:
    """Weights and gradients one element into their storage: no 16-byte accesses."""
    start = tensors(0, 0.1, ALIGNED)
    params, shifted = parameters(start), []
    for tensor in start:
        storage = torch.empty(tensor.numel() + 1, device=DEVICE)
        shifted.append(nn.Parameter(storage[1:].view(tensor.shape).copy_(tensor)))
    for each in (params, shifted):
        train(Lamb(groups(each), lr=1e-2, fused=True), each, range(3))
    torch.testing.assert_close(flat(shifted), flat(params), rtol=1e-6, atol=1e-7)


@case
@pytest.mark.parametrize("classes", [10, 102, 1000])
def test_only_a_tensor_of_an_odd_size_is_accessed_element_by_element(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deit_fast.optim import lamb_triton

    chunks: dict[int, int] = {}
    moments = lamb_triton._moments

    class Watched:
        def __getitem__(self, grid: tuple[int]) -> Any:
            def launch(*given: Any, **options: Any) -> None:
                chunks[options["ALIGNED"]] = grid[0]
                moments[grid](*given, **options)

            return launch

    monkeypatch.setattr(lamb_triton, "_moments", Watched())
    start = tensors(0, 0.1, [(classes,), (classes, 64), (192, 64), (64,)])
    params = parameters(start)
    train(Lamb(groups(params), lr=1e-2, fused=True), params, range(1))
    wide = sum(-(-tensor.numel() // 4096) for tensor in start[1:])
    assert chunks == ({0: 1, 4: wide} if classes % 4 else {4: wide + 1})


@case
def test_converges_on_a_regression() -> None:
    assert_converges(Lamb, 64, 200, DEVICE.type, fused=True)


@case
def test_the_learning_rate_is_read_from_the_device() -> None:
    from deit_fast.optim import lamb_triton

    lr = torch.tensor(1e-2, device=DEVICE)
    params = parameters(tensors(0, 0.1))
    optimizer = Lamb(groups(params), lr=lr, fused=True)
    train(optimizer, params, range(2))
    kernels = [getattr(lamb_triton, name) for name in ("_grad_norm", "_clip", "_moments", "_add_up", "_apply")]
    compiled = [] if INTERPRETED else [len(kernel.device_caches[0][0]) for kernel in kernels]
    before = flat(params)
    for value in (0.0, 1e-3):
        lr.fill_(value)
        train(optimizer, params, range(2, 4))
        assert torch.equal(before, flat(params)) == (value == 0)
    assert compiled == ([] if INTERPRETED else [len(kernel.device_caches[0][0]) for kernel in kernels])


def test_refuses_what_it_cannot_update() -> None:
    if not INTERPRETED:
        with pytest.raises(ValueError, match="expected a CUDA device"):
            Lamb([nn.Parameter(torch.ones(3))], lr=0.1, fused=True)
    param = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match="float32"):
        Lamb([param], lr=0.1, fused=INTERPRETED).step()
