"""A block's kernels under torch.compile and in training steps, in Triton's interpreter on a CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deit_fast.models import block
from deit_fast.models.block import FusedBlock
from deit_fast.models.stochastic_depth import SubsetBlock
from tests.interpreter import INTERPRETED, run_interpreted
from tests.models.test_block import both
from tests.training.test_step import batch, make, weights

pytest.importorskip("triton")

case = pytest.mark.skipif(not INTERPRETED, reason="test_the_cases_in_the_interpreter runs it")
__all__ = ["both"]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "_ON_CPU", INTERPRETED)


@pytest.mark.soak
def test_the_cases_in_the_interpreter() -> None:
    run_interpreted(__file__)


@case
def test_compiled_it_writes_over_nothing_that_is_read_later() -> None:
    """Inductor leaves copies out and writes in place: three blocks, whose streams all have to survive."""
    torch.manual_seed(0)
    kinds = (SubsetBlock, FusedBlock, SubsetBlock)
    blocks = nn.Sequential(*(kind(32, 4, qkv_bias=True, init_values=0.5, drop_path=0.4) for kind in kinds)).train()
    x = torch.randn(6, 5, 32, requires_grad=True)

    def call(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        torch.manual_seed(1)
        y = function(x * 2)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *blocks.parameters()])]

    eager = call(blocks)
    with torch._inductor.config.patch(fallback_random=True):
        compiled = call(torch.compile(blocks))
    for mine, theirs in zip(compiled, eager, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-6)


@case
@pytest.mark.parametrize("words", [["model.drop_path=0"], ["model.drop_path=0.5", "run.grad_checkpointing=selective"]])
def test_losses_of_training_steps_are_those_without(both: Any, words: list[str]) -> None:
    def call() -> tuple[list[float], Tensor]:
        _, step = make([*words, "model.layer_scale=0.1", "optim.name=adamw"])
        step.state.model.blocks = step.state.model.blocks[:1]
        losses: list[float] = []
        for seed in range(3):
            step([batch(seed, mixed=True)], 1e-3)
            losses.append(step.meter.sums[0].item() - sum(losses))
        return losses, weights(step)

    (fused, moved), (plain, expected) = both(call)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)
    assert not torch.equal(moved, expected)  # as it would be without the kernels
