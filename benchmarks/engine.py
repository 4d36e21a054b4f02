"""Our training step and evaluation against engines R and T of peers.py: same model, weights, batches and process."""

import contextlib
import itertools
import shutil
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import Model
from deit_fast.runtime.profile import StepProfile
from deit_fast.training.cuda_graph import EAGER_STEPS
from deit_fast.zoo import find_architecture

from .measure import (
    Row,
    Session,
    Timing,
    free_memory,
    interleave,
    peak_memory_mb,
    rate,
    reset_peak_memory,
)
from .peers import ReferenceBatch, ReferenceEngine, TimmBatch, TimmEngine
from .workload import (
    TINY,
    add_fitting_row,
    build_step,
    count_parameters,
    find_recipe,
    forward_macs,
    in_turn,
    parse_model,
    synthetic_batches,
    training_flops,
)

LR = 1e-3
MODELS = {"cuda": ["deit3_base_patch16@224", "deit3_small_patch16@224", "deit3_large_patch16@192",
                   "deit3_huge_patch14@160", "deit3_base_patch16@384", "deit3_small_patch16@384"],
          "cpu": ["deit3_tiny_patch16@224", "deit3_small_patch16@224"]}  # fmt: skip
_GPU_BATCH = {"deit3_tiny_patch16": 512, "deit3_small_patch16": 512, "deit3_medium_patch16": 512}
_STEADY_STEPS = 100


def default_batch(word: str, device: torch.device, quick: bool) -> int:
    """The goals' batch on a GPU (512 for S, 256 above, a quarter at 384 px); on CPUs one that takes seconds."""
    if device.type == "cpu":
        return 4 if quick else 8
    name, size = parse_model(word)
    batch = _GPU_BATCH.get(name, 256)
    return batch // 4 if size >= 384 or quick else batch


def run(session: Session, models: list[str] | None, batch: int | None, words: list[str]) -> None:
    """One row per model."""
    device = session.device
    models = models or ([TINY] if session.quick and device.type == "cpu" else MODELS[device.type])
    session.settings = {
        "batch": batch,
        "overrides": words,
        "lr": LR,
        "reference": "eager, fp16 autocast + GradScaler (fp32 on CPUs), explicit softmax, timm Lamb, item() per step",
        "timm": "bf16 autocast (fp32 on CPUs), torch.compile, timm Lamb, ModelEmaV3, channels-last, compiled eval",
    }
    ceiling = session.measure_ceiling()
    for word in models:
        if session.out_of_time(word):
            continue
        add_fitting_row(
            session,
            word,
            batch or default_batch(word, device, session.quick),
            lambda word, size: _measure(session, find_recipe(word, size, words), ceiling),
        )


def _measure(session: Session, recipe: Recipe, ceiling: float) -> Row:
    device, section, batch = session.device, recipe.model, recipe.run.global_batch
    compiled = device.type == "cuda" or (not session.quick and shutil.which("g++") is not None)
    session.say(f"{section.name} at {section.image_size} px, batch {batch}")
    batches = synthetic_batches(recipe, device)
    reference_batches = [ReferenceBatch.of(each, recipe.data) for each in batches]
    timm_batches = [TimmBatch(each, recipe) for each in batches]
    weights: dict[str, Tensor] = {}
    train: dict[str, Callable[[], Any]] = {}
    predict: dict[str, Callable[[], Any]] = {}
    memory: dict[str, float | None] = {}
    sections = {"ours": section, "reference": section, "timm": section}
    errors: dict[str, str] = {}

    def add_ours(name: str, variant: Recipe) -> None:
        step = build_step(variant, device)
        sections[name] = variant.model
        weights.update({key: value.clone() for key, value in step.state.model.state_dict().items()})
        predictor = step.predictor(step.state.model)

        def evaluate(images: Tensor) -> Tensor:
            step.state.model.eval()
            with torch.no_grad():
                return predictor(images)

        train[name] = in_turn(lambda each: step([each], LR), batches)
        predict[name] = in_turn(lambda each: evaluate(each.images), batches)

    def add_reference() -> None:
        engine = ReferenceEngine(recipe, device, weights)
        train["reference"] = in_turn(lambda each: engine(each, LR), reference_batches)
        predict["reference"] = in_turn(engine.predict, reference_batches)

    def add_timm() -> None:
        engine = TimmEngine(recipe, device, compiled, weights)
        train["timm"] = in_turn(lambda each: engine(each, LR), timm_batches)
        predict["timm"] = in_turn(engine.predict, timm_batches)

    builders: dict[str, Callable[[], None]] = {"ours": lambda: add_ours("ours", recipe)}
    if "drop_path_mode" in Model.model_fields and section.drop_path:
        # What stochastic depth by subsets gains over the same step with every sample computed: goal G2.
        dense = recipe.override(["model.drop_path_mode=bernoulli"])
        builders["ours_dense"] = lambda: add_ours("ours_dense", dense)
    if recipe.run.cuda_graph:  # what the graph gains over a host that launches every kernel
        launched = recipe.override(["run.cuda_graph=false"])
        builders["ours_launched"] = lambda: add_ours("ours_launched", launched)
    if recipe.run.compute_copy:  # what the copy gains over casts by autocast
        cast = recipe.override(["run.compute_copy=false"])
        builders["ours_autocast"] = lambda: add_ours("ours_autocast", cast)
    builders |= {"reference": add_reference, "timm": add_timm}
    for name, build in builders.items():
        before = torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
        reset_peak_memory(device)
        build()
        session.say(f"first steps: {name}")
        try:
            for _ in range(EAGER_STEPS + 2 if recipe.run.cuda_graph else 2):  # until both graphs are recorded
                train[name]()
            memory[name] = peak_memory_mb(device) - before if device.type == "cuda" else None
        except Exception as error:
            if name == "ours":
                raise
            errors[name] = f"{type(error).__name__}: {error}"[:300]
            session.say(f"{name} failed: {errors[name]}")
            del train[name], predict[name]
            free_memory()

    warmup = 1 if device.type == "cpu" else 20
    seconds = 0.3 if session.quick else 2.0 if device.type == "cuda" else 1.0
    options: dict[str, Any] = {"repeats": session.repeats, "warmup": warmup, "seconds": seconds}
    trained, failed = interleave(train, device, session.say, **options)
    evaluated, failed_too = interleave(predict, device, session.say, **options)
    row: Row = {
        "model": section.name,
        "resolution": section.image_size,
        "batch": batch,
        "drop_path": section.drop_path,
        "cuda_graph": recipe.run.cuda_graph,
        "compute_copy": recipe.run.compute_copy,
        "params_m": count_parameters(section) / 1e6,
        "gmacs": forward_macs(section) / 1e9,
        "timm_compiled": compiled,
        "sdpa_backend": sdpa_backend(section, batch, device),
        "train": {name: _speed(trained[name], batch, sections[name], ceiling, memory.get(name)) for name in trained},
        "eval": {
            name: {"images_per_second": rate(batch, timing.seconds), "step_ms": timing.seconds["median"] * 1e3}
            for name, timing in evaluated.items()
        },
        "errors": errors | failed | failed_too,
    }
    row["ratios"] = {
        f"{kind}_ours_over_{peer}": timings[peer].seconds["median"] / timings["ours"].seconds["median"]
        for kind, timings in (("train", trained), ("eval", evaluated))
        for peer in timings
        if peer != "ours" and "ours" in timings
    }
    if device.type == "cuda":
        row |= _steadiness(session, train["ours"], device)
    return row


def _speed(timing: Timing, batch: int, section: Model, ceiling: float, memory: float | None) -> Row:
    """Images per second, and the share of the matmul ceiling: of FLOPs executed, and of FLOPs of the whole model."""
    executed = training_flops(section, batch)
    images = rate(batch, timing.seconds)
    return {
        "images_per_second": images,
        "step_ms": timing.seconds["median"] * 1e3,
        "cpu_ms": timing.cpu_seconds["median"] * 1e3,
        "executed_gflops_per_image": executed / 1e9,
        "mfu_executed": executed * images["median"] / ceiling,
        "mfu_useful": 6 * forward_macs(section) * images["median"] / ceiling,
        "peak_memory_mb": memory,
    }


def _steadiness(session: Session, step: Callable[[], Any], device: torch.device) -> Row:
    """Spread of single steps by the GPU's own clock, and the profiler's idle share and synchronisations: goal G6."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(_STEADY_STEPS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize(device)
    times = sorted(a.elapsed_time(b) for a, b in itertools.pairwise(marks))
    watched = StepProfile(device)
    watched.start()
    for _ in range(10):
        step()
        watched.steps += 1
    watched.stop()
    session.say("our step under the profiler\n" + watched.page())
    return {
        "p99_over_p50": times[int(0.99 * len(times))] / statistics.median(times),
        "profile": watched.figures(),
    }


def sdpa_backend(section: Model, batch: int, device: torch.device) -> str:
    """The attention kernel torch chooses for this model's shapes and training type."""
    architecture = find_architecture(section.name)
    tokens = (section.image_size // architecture.patch_size) ** 2 + 1
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shape = (batch, architecture.num_heads, tokens, architecture.embed_dim // architecture.num_heads)
    query = torch.empty(shape, device=device, dtype=dtype, requires_grad=True)
    with contextlib.suppress(Exception):  # a private function: its absence must not cost the figures
        return SDPBackend(torch._fused_sdp_choice(query, query, query)).name
    return "unknown"
