"""LAMB with bf16 copies of weights, which take the gradients: torch's passes, and the Triton kernels as
tests/optim/test_lamb_triton.py runs them."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deit_fast.optim.base import WeightAverage
from deit_fast.optim.lamb import Lamb
from tests.interpreter import DEVICE, INTERPRETED, Accesses
from tests.optim.test_lamb_triton import ALIGNED, DECAYS, SHAPES, flat, groups, tensors
from tests.oracles.lamb import OracleLamb

paths = pytest.mark.parametrize(
    "fused", [False, *([True] if INTERPRETED else [pytest.param(True, marks=pytest.mark.gpu)])]
)


class Copied:
    """Parameters of which every other one has a copy, averages of all, and the optimizer that moves them."""

    def __init__(self, fused: bool, shapes: list[tuple[int, ...]] = SHAPES) -> None:
        self.fused = fused
        self.start = tensors(0, 0.1, shapes)
        device = DEVICE if fused else torch.device("cpu")
        self.params = [nn.Parameter(t.clone().to(device)) for t in self.start]
        self.copies = {p: nn.Parameter(p.detach().bfloat16()) for p in self.params[::2]}
        self.averages = [p.detach().clone() for p in self.params]
        average = WeightAverage(self.params, self.averages, 0.0)  # that forgets at once
        self.optimizer = Lamb(groups(self.params), 4e-3, average=average, copies=self.copies, fused=fused)

    def step(self, seed: int, scale: float = 0.3) -> list[Tensor]:
        """The gradients of a step, as they were rounded."""
        given = []
        for param, grad in zip(self.params, tensors(seed, scale, [tuple(p.shape) for p in self.params]), strict=True):
            target = self.copies.get(param, param)
            target.grad = grad.to(target.device, target.dtype)
            given.append(target.grad.float().cpu().clone())  # clipping may write to it
        self.optimizer.step()
        return given

    def assert_rounded(self) -> None:
        for param, copied in self.copies.items():
            assert torch.equal(copied, rounded(param, self.fused))


def rounded(weight: Tensor, fused: bool) -> Tensor:
    """To bf16: to the nearest, but Triton's interpreter cuts the digits off."""
    if fused and INTERPRETED:
        return (weight.detach().view(torch.int32) & -65536).view(torch.float32).bfloat16()
    return weight.bfloat16()


@paths
@pytest.mark.parametrize("scale", [1e-4, 100.0], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("shapes", [SHAPES, ALIGNED, [(8,), (128, 96), (4096,)]], ids=["odd", "fours", "eights"])
def test_equals_the_float64_oracle_of_the_rounded_gradients(shapes: list, scale: float, fused: bool) -> None:
    copied = Copied(fused, shapes)
    oracle = OracleLamb([t.numpy() for t in copied.start], DECAYS[: len(shapes)], lr=4e-3)
    for seed in range(6):
        grads = copied.step(seed + 1, scale)
        oracle.step([g.numpy() for g in grads])
        norm = np.sqrt(sum((g.numpy().astype(np.float64) ** 2).sum() for g in grads))
        assert copied.optimizer.grad_norm.item() == pytest.approx(norm, rel=1e-6)
        copied.assert_rounded()
    for params in (copied.params, copied.averages):
        for param, expected in zip(params, oracle.params, strict=True):
            np.testing.assert_allclose(param.detach().cpu().numpy(), expected, rtol=1e-5, atol=1e-7)


@paths
def test_a_skipped_step_leaves_the_copies(fused: bool) -> None:
    copied = Copied(fused)
    copied.step(1)
    before = flat([*copied.params, *copied.averages]), flat(list(copied.copies.values()))
    for target in (copied.params[5], copied.copies[copied.params[4]]):
        for each in (*copied.params, *copied.copies.values()):
            each.grad = None if each in copied.copies else torch.ones_like(each)
        assert target.grad is not None
        target.grad.view(-1)[0] = float("inf")
        copied.optimizer.step()
        assert copied.optimizer.skipped.item() == 1
        assert torch.equal(flat([*copied.params, *copied.averages]), before[0])
        assert torch.equal(flat(list(copied.copies.values())), before[1])
    copied.step(2)
    assert not torch.equal(flat(copied.params), before[0])
    copied.assert_rounded()


@paths
def test_thirds_and_another_layout(fused: bool) -> None:
    """Rows with a trust ratio each; a channels-last weight whose gradient is contiguous."""
    device = DEVICE if fused else torch.device("cpu")
    start = tensors(7, 0.1, [(210, 65), (8, 3, 5, 5)])
    start[0][:70] *= 10
    split = nn.Parameter(start[0].clone().to(device))
    image = nn.Parameter(start[1].to(device, memory_format=torch.channels_last))
    copies = {p: nn.Parameter(p.detach().bfloat16()) for p in (split, image)}
    optimizer = Lamb([split, image], 4e-3, weight_decay=0.05, splits={split: [70, 70, 70]}, copies=copies, fused=fused)
    oracle = OracleLamb([*start[0].numpy().reshape(3, 70, 65), start[1].numpy()], [0.05] * 4, lr=4e-3)
    for seed in range(3):
        grads = [g.bfloat16().to(device) for g in tensors(seed, 0.3, [(210, 65), (8, 3, 5, 5)])]
        copies[split].grad, copies[image].grad = grads
        optimizer.step()
        whole = [g.float().cpu().numpy() for g in grads]
        oracle.step([*whole[0].reshape(3, 70, 65), whole[1]])
        assert all(torch.equal(c, rounded(p, fused)) for p, c in copies.items())
    expected = np.concatenate([w.ravel() for w in oracle.params])
    np.testing.assert_allclose(flat([split, image]), expected, rtol=1e-5, atol=1e-7)


@paths
def test_zero_grad_clears_the_copies(fused: bool) -> None:
    copied = Copied(fused)
    for set_to_none in (False, True):
        copied.step(1)
        copied.optimizer.zero_grad(set_to_none)
        for each in (*copied.params, *copied.copies.values()):
            assert each.grad is None or (not set_to_none and not each.grad.any())
    before = flat(copied.params)
    copied.optimizer.step()
    assert torch.equal(flat(copied.params), before)


def test_refuses_a_copy_that_is_none() -> None:
    param = nn.Parameter(torch.ones(3, 4))
    for wrong in (torch.ones(3, 4), torch.ones(4, 3, dtype=torch.bfloat16), torch.ones(3, 4).bfloat16().T):
        with pytest.raises(ValueError, match=r"Lamb: copy of .* expected \(3, 4\), \(4, 1\), torch.bfloat16"):
            Lamb([param], lr=0.1, copies={param: wrong})


@pytest.mark.parametrize(("average", "copies", "expected"), [(False, False, 44), (True, False, 52), (True, True, 50)])
@pytest.mark.skipif(not INTERPRETED, reason="only the interpreter can count")
def test_the_bytes_per_parameter(monkeypatch: pytest.MonkeyPatch, average: bool, copies: bool, expected: int) -> None:
    """What the kernels read and write, counted access by access: the floor in benchmarks/optimizer.py."""
    param = nn.Parameter(torch.ones(300, 1000))
    held = {param: nn.Parameter(param.detach().bfloat16())} if copies else {}
    averages = WeightAverage([param], [param.detach().clone()], 0.9) if average else None
    optimizer = Lamb([param], lr=0.1, weight_decay=0.1, average=averages, copies=held, fused=True)
    for each in (param, *held.values()):
        each.grad = torch.ones_like(each)
    accesses = Accesses(monkeypatch)
    optimizer.step()
    assert accesses.bytes / param.numel() == pytest.approx(expected, abs=0.5)  # the rest is tables and sums
