"""The memory of a step as it is calculated, against what torch's allocator counts in an eager step on the CPU."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.world import World
from deit_fast.training.memory import step_memory, too_high
from deit_fast.training.objective import blank_batch
from deit_fast.training.prepare import initial_state, prepare

CPU = World(0, 1, torch.device("cpu"))


def recipe_of(model: str, size: int, images: int, *words: str) -> Recipe:
    passes = next((int(word.partition("=")[2]) for word in words if word.startswith("run.accumulation=")), 1)
    fixed = [f"model.name={model}", f"model.image_size={size}", f"run.global_batch={images * passes}", "mix.group=2"]
    return get_recipe("deit3_small_1k_224", [*fixed, f"run.accumulation={passes}", *words])


def measured_peak(recipe: Recipe, images: int, dtype: torch.dtype) -> int:
    """Bytes: all tensors that live before the second step, and the most that the allocator had beside them in it."""
    state = initial_state(recipe, CPU)
    step = prepare(recipe, state, CPU, dtype)
    batches = [blank_batch(recipe, images, CPU.device) for _ in range(recipe.run.passes)]
    step(batches, 1e-4)
    state.optimizer.zero_grad(set_to_none=True)
    storages = {}
    for tensor in (*state.model.parameters(), *state.model.buffers(), *(state.ema.parameters() if state.ema else ()),
                   *(value for each in state.optimizer.state.values() for value in each.values()),
                   *(value for batch in batches[:1] for value in batch[:2])):  # fmt: skip
        if isinstance(tensor, torch.Tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(batches, 1e-4)
    events = [each for each in profiler.profiler.kineto_results.events() if each.name() == "[memory]"]
    assert len(events) > 500, "the profiler has to see every allocation"
    now = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return sum(storages.values()) + most


FP32, BF16 = torch.float32, torch.bfloat16
SLOW = pytest.mark.soak  # seconds


@pytest.mark.parametrize(
    ("model", "size", "images", "dtype", "words"),
    [
        ("deit3_nano_patch4", 24, 64, FP32, []),
        ("deit3_nano_patch4", 24, 32, BF16, ["run.accumulation=2"]),
        pytest.param("deit3_small_patch16", 160, 8, FP32, [], marks=SLOW),
        pytest.param("deit3_base_patch16", 96, 8, BF16, ["run.grad_checkpointing=true"], marks=SLOW),
        pytest.param("deit_tiny_distilled_patch16", 224, 8, BF16, ["optim.name=adamw", "optim.ema_decay=null"],
                     marks=SLOW),
        pytest.param("cait_xxs24", 224, 4, FP32, ["optim.name=sgd"], marks=SLOW),
        pytest.param("resmlp_12", 224, 8, FP32, ["mix.mixup=0", "mix.cutmix=0"], marks=SLOW),
        pytest.param("patchconvnet_s60", 160, 2, BF16, [], marks=SLOW),
    ],
)  # fmt: skip
def test_the_peak_is_that_of_a_real_step(
    model: str, size: int, images: int, dtype: torch.dtype, words: list[str]
) -> None:
    recipe = recipe_of(model, size, images, *words)
    found, measured = step_memory(recipe, images, dtype), measured_peak(recipe, images, dtype)
    print(f"{model} {size} px x {images}: {found.peak / 2**20:.1f} MiB, measured {measured / 2**20:.1f}")
    assert found.peak == pytest.approx(measured, rel=0.1), found.peak / measured
    assert found.peak >= found.fixed + found.activations * 0.9
    assert too_high(recipe, images) >= measured


def test_what_a_step_holds() -> None:
    recipe = recipe_of("deit3_nano_patch4", 24, 16)
    state = initial_state(recipe, CPU)
    weights = sum(each.nbytes for each in state.model.parameters())
    found = step_memory(recipe, 16, torch.float32)
    assert (found.weights, found.gradients, found.moments, found.average) == (weights, weights, 2 * weights, weights)
    without = step_memory(recipe.override(["optim.name=sgd", "optim.ema_decay=null"]), 16, torch.float32)
    assert (without.moments, without.average) == (weights, 0)
    some = step_memory(recipe.override(["optim.trainable=attention"]), 16, torch.float32)
    assert 0 < some.gradients < weights
    assert some.peak < found.peak
    shared = step_memory(recipe.override(["run.parallel=fsdp"]), 16, torch.float32, processes=4)
    assert shared.fixed == (4 * weights) // 4
    twice = step_memory(recipe_of("deit3_nano_patch4", 24, 32), 32, torch.float32)
    assert twice.activations == pytest.approx(2 * found.activations, rel=0.02)
    in_buckets = step_memory(recipe, 16, torch.float32, processes=2)
    assert in_buckets.peak == found.peak + weights


def test_a_gpu_keeps_no_attention_weights() -> None:
    recipe = recipe_of("deit3_nano_patch4", 48, 16)
    kept, fused = (step_memory(recipe, 16, torch.bfloat16, on_gpu=each).activations for each in (False, True))
    heads, depth, tokens = 4, 6, (48 // 4) ** 2 + 1
    assert kept - fused >= depth * 16 * heads * tokens**2  # a byte for each would be too few
