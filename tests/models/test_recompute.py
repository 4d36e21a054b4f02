"""Activation checkpointing, of whole blocks and of what is cheap in them: the same gradients, memory and work apart."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError
from tests.training.test_step import batch, make

KINDS = ("false", "selective", "true")
WORDS = {
    "subset": ["model.drop_path=0.5"],
    "bernoulli": ["model.drop_path=0.5", "model.drop_path_mode=bernoulli"],
    "dropout": ["model.dropout=0.5"],
    "cosub": ["loss.cosub=true", "loss.name=bce", "model.drop_path=0.5"],
}


def measure(words: list[str]) -> tuple[torch.Tensor, int, int]:
    """Gradients of one pass, bytes that its forward left allocated, and its FLOPs."""
    _, step = make(words)
    step.state.model.train()
    images = batch()
    torch.manual_seed(1)
    with FlopCounterMode(display=False) as work:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as memory:
            loss = step.objective(*images)
        loss.backward()
    kept = sum(event.self_cpu_memory_usage for event in memory.events())
    return torch.cat([p.grad.flatten() for p in step.state.model.parameters()]), kept, work.get_total_flops()


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
def test_the_same_gradients_for_less_memory(words: list[str]) -> None:
    (plain, all_kept, work), (part, some_kept, same_work), (full, least_kept, more_work) = (
        measure([*words, f"run.grad_checkpointing={kind}"]) for kind in KINDS
    )
    assert torch.equal(plain, part)
    assert torch.equal(plain, full)
    assert least_kept < some_kept < 0.7 * all_kept
    assert same_work == work < more_work  # products are kept, not computed again


def test_what_it_can_be() -> None:
    for kind, value in zip(KINDS, (False, "selective", True), strict=True):
        assert get_recipe("demo_pretrain", [f"run.grad_checkpointing={kind}"]).run.grad_checkpointing == value
    with pytest.raises(RecipeError, match=r"run\.grad_checkpointing"):
        get_recipe("demo_pretrain", ["run.grad_checkpointing=some"])
