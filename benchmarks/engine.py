"""Our training step and evaluation against engines R and T of peers.py, with one model, weights, batches, process."""

import contextlib
import itertools
import shutil
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from deit_fast.infer.compile import wants_compile
from deit_fast.models.build import drops_subset
from deit_fast.models.cost import count_parameters, forward_macs, training_flops
from deit_fast.models.stochastic_depth import keep_count
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import Model
from deit_fast.runtime.errors import one_line
from deit_fast.runtime.profile import StepProfile
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
    find_recipe,
    in_turn,
    parse_model,
    synthetic_batches,
)

LR = 1e-3
MODELS = {"cuda": ["deit3_base_patch16@224", "deit3_small_patch16@224", "deit3_large_patch16@192",
                   "deit3_huge_patch14@160", "deit3_base_patch16@384", "deit3_small_patch16@384"],
          "cpu": ["deit3_tiny_patch16@224", "deit3_small_patch16@224"]}  # fmt: skip
_GPU_BATCH = {"deit3_tiny_patch16": 512, "deit3_small_patch16": 512, "deit3_medium_patch16": 512}
_STEADY_STEPS = 100
ENGINES = ("ours_dense", "ours_autocast", "timm", "reference")
"""The engines against which our step can be timed."""


def default_batch(word: str, device: torch.device, quick: bool) -> int:
    """On a GPU the batch of the goals (512 for S, 256 for larger models, a quarter at 384 px), on CPUs less."""
    if device.type == "cpu":
        return 4 if quick else 8
    name, size = parse_model(word)
    batch = _GPU_BATCH.get(name, 256)
    return batch // 4 if size >= 384 or quick else batch


def run(session: Session, models: list[str] | None, batch: int | None, words: list[str], against: list[str]) -> None:
    """One row per model. against: names of ENGINES; an empty list means all."""
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
            lambda word, size: _Comparison(session, find_recipe(word, size, words), ceiling).measure(against),
        )


def variants(recipe: Recipe, device: torch.device) -> dict[str, Recipe]:
    """Our step; and without each option that the recipe asks for, where that makes another step."""
    section, batch = recipe.model, recipe.run.global_batch
    found = {"ours": recipe}
    if section.drop_path and drops_subset(section) and keep_count(batch, section.drop_path) < batch:
        # The gain of stochastic depth by subsets over the same step that computes every sample: goal G2.
        found["ours_dense"] = recipe.override(["model.drop_path_mode=bernoulli"])
    if recipe.run.compute_copy:  # the gain of the copy over casts by autocast
        found["ours_autocast"] = recipe.override(["run.compute_copy=false"])
    return found


class _Comparison:
    """One model's engines. Each is timed once when it is built, then all in turn. Results are written at once."""

    def __init__(self, session: Session, recipe: Recipe, ceiling: float) -> None:
        self._session, self._recipe, self._ceiling, self._device = session, recipe, ceiling, session.device
        can = not session.quick and shutil.which("g++") is not None
        self._timm_compiled = session.device.type == "cuda" or can
        self._word = f"{recipe.model.name}@{recipe.model.image_size}"
        self._weights: dict[str, Tensor] = {}
        self._sections: dict[str, Model] = {}
        self._compiled: dict[str, bool] = {}
        self._memory: dict[str, float | None] = {}
        self._errors: dict[str, str] = {}
        self._train: dict[str, Callable[[], Any]] = {}
        self._predict: dict[str, Callable[[], Any]] = {}
        self._timed: dict[str, dict[str, Timing]] = {"train": {}, "eval": {}}
        self._batches = synthetic_batches(recipe, session.device)

    def measure(self, against: list[str]) -> Row:
        """The row for our step and the engines in `against`, or all engines."""
        session, recipe, device = self._session, self._recipe, self._device
        session.say(f"{self._word}, batch {recipe.run.global_batch}")
        mine = variants(recipe, device)
        names = [name for name in [*mine, "timm", "reference"] if name == "ours" or not against or name in against]
        for name in names:
            before = torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
            reset_peak_memory(device)
            session.say(f"first steps: {name}")
            try:
                self._build(name, mine)
                for _ in range(2):
                    self._train[name]()
                self._memory[name] = peak_memory_mb(device) - before if device.type == "cuda" else None
            except Exception as error:
                if name == "ours":
                    raise
                self._errors[name] = f"{type(error).__name__}: {one_line(error)}"[:300]
                session.say(f"{name} failed: {self._errors[name]}")
                self._train.pop(name, None)
                self._predict.pop(name, None)
                free_memory()
                continue
            self._time("train", {name: self._train[name]}, 1)
        self._time("train", self._train, session.repeats)
        self._time("eval", self._predict, session.repeats)
        row = self._row()
        if device.type == "cuda":
            session.add(row)
            row = row | _steadiness(session, self._train["ours"], device)
        return row

    def _build(self, name: str, mine: dict[str, Recipe]) -> None:
        recipe, device, weights = self._recipe, self._device, self._weights
        self._sections[name] = mine.get(name, recipe).model
        if name == "reference":
            reference = ReferenceEngine(recipe, device, weights)
            inputs = [ReferenceBatch.of(each, recipe.data) for each in self._batches]
            self._train[name] = in_turn(lambda each: reference(each, LR), inputs)
            self._predict[name] = in_turn(reference.predict, inputs)
        elif name == "timm":
            engine = TimmEngine(recipe, device, self._timm_compiled, weights)
            theirs = [TimmBatch(each, recipe) for each in self._batches]
            self._train[name] = in_turn(lambda each: engine(each, LR), theirs)
            self._predict[name] = in_turn(engine.predict, theirs)
        else:
            step = build_step(mine[name], device)
            self._compiled[name] = step.compiled
            if not step.compiled and wants_compile(recipe.run, device):
                self._session.say(f"{name} IS NOT COMPILED: its figures are an eager step's")
            weights.update({key: value.clone() for key, value in step.state.model.state_dict().items()})
            predictor = step.predictor(step.state.model)

            def evaluate(images: Tensor) -> Tensor:
                step.state.model.eval()
                with torch.no_grad():
                    return predictor(images)

            self._train[name] = in_turn(lambda each: step([each], LR), self._batches)
            self._predict[name] = in_turn(lambda each: evaluate(each.images), self._batches)

    def _time(self, kind: str, cases: dict[str, Callable[[], Any]], repeats: int) -> None:
        session, batch = self._session, self._recipe.run.global_batch

        def known(name: str, timing: Timing) -> None:
            self._timed[kind][name] = timing
            eager = (
                "" if self._compiled.get(name, True) or not wants_compile(self._recipe.run, self._device) else ", eager"
            )
            session.note(f"{self._word} {kind} {name}{eager}", batch / timing.seconds["median"], "images/s")
            if "ours" in self._timed["train"]:
                session.add(self._row())

        seconds = session.seconds(0.3, 2.0 if self._device.type == "cuda" else 1.0)
        warmup = 1 if self._device.type == "cpu" else 5 if session.brief else 20
        _, failed = interleave(
            cases, self._device, session.say, repeats=repeats, warmup=warmup, seconds=seconds, known=known
        )
        self._errors |= failed

    def _row(self) -> Row:
        recipe, section, batch = self._recipe, self._recipe.model, self._recipe.run.global_batch
        return {
            "model": section.name,
            "resolution": section.image_size,
            "batch": batch,
            "drop_path": section.drop_path,
            "compute_copy": recipe.run.compute_copy,
            "params_m": count_parameters(section) / 1e6,
            "gmacs": forward_macs(section) / 1e9,
            "compiled": self._compiled,
            "timm_compiled": self._timm_compiled,
            "sdpa_backend": sdpa_backend(section, batch, self._device),
            "train": {
                name: _speed(timing, batch, self._sections[name], self._ceiling, self._memory.get(name))
                for name, timing in self._timed["train"].items()
            },
            "eval": {
                name: {"images_per_second": rate(batch, timing.seconds), "step_ms": timing.seconds["median"] * 1e3}
                for name, timing in self._timed["eval"].items()
            },
            "errors": self._errors,
            "ratios": {
                f"{kind}_ours_over_{peer}": timings[peer].seconds["median"] / timings["ours"].seconds["median"]
                for kind, timings in self._timed.items()
                for peer in timings
                if peer != "ours" and "ours" in timings
            },
        }


def _speed(timing: Timing, batch: int, section: Model, ceiling: float, memory: float | None) -> Row:
    """Images per second, and fractions of the matmul ceiling: by executed FLOPs and by the whole model's FLOPs."""
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
    """Spread of single steps by the GPU's own clock, and the profiler's idle fraction and synchronisations: goal G6."""
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
    with contextlib.suppress(Exception):  # a private function: without it the other figures are still measured
        return SDPBackend(torch._fused_sdp_choice(query, query, query)).name
    return "unknown"
