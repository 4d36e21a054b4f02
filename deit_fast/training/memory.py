"""The memory of a training step, calculated before it runs by tracing the step with tensors without content.

The trace runs the step's own objective, forward and backward, eagerly on torch's fake tensors, and follows every
storage from its first tensor to its last. On a CPU the result agrees with the allocator of an eager step within some
per cent (tests/training/test_memory.py). torch.compile and the kernels of blocks keep less. A GPU's libraries, its
allocator's rounding and DALI need more memory on top. Neither was measured on a GPU.
"""

import itertools
import weakref
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from deit_fast.infer.precision import Classifier
from deit_fast.models.build import build_model
from deit_fast.models.recompute import recompute
from deit_fast.optim.build import freeze
from deit_fast.recipe.schema import Recipe
from deit_fast.training.distill import Teacher
from deit_fast.training.objective import Objective, blank_batch
from deit_fast.zoo import find_architecture

HEADROOM = 0.85
"""Fraction of the memory that a step may take. The rest is for the loader, the libraries, the exchange of gradients,
the evaluation, and rounding by the allocator; how much these need on a GPU was not measured."""

_CPU = torch.device("cpu")
_MOMENTS = {"sgd": 1}
"""The number of an optimizer's state tensors per weight, if it is not two."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one process's training step."""

    weights: int
    """fp32 weights and running statistics; of a sharded model, this process's share."""
    gradients: int
    moments: int
    """The optimizer's state."""
    average: int
    """The weights' moving average."""
    activations: int
    """Tensors that a pass keeps for its backward pass, including the images and, with distillation, the teacher."""
    peak: int
    """The peak of live bytes, including temporary tensors."""

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the batch: weights, moments and average."""
        return self.weights + self.moments + self.average


def step_memory(
    recipe: Recipe, images: int, dtype: torch.dtype, processes: int = 1, on_gpu: bool = False
) -> StepMemory:
    """The memory of a step of `recipe` with passes of `images` images in each of `processes` processes.

    dtype: of the forward pass. on_gpu: assume a GPU's fused attention, which keeps no attention weights; a CPU's bf16
    passes keep them. If a step has several passes, two are traced, because their gradients are added up.
    """
    traced = _trace(recipe, images, dtype, passes=min(2, recipe.run.passes), on_gpu=on_gpu)
    trained, sharded = traced.trained, recipe.run.parallel == "fsdp" and processes > 1
    share = processes if sharded else 1
    weights, gradients = traced.weights // share, trained // share
    moments = _MOMENTS.get(recipe.optim.name, 2) * gradients
    average = weights if recipe.optim.ema_decay is not None else 0
    # With DDP, gradients always exist in its buckets. FSDP holds the whole gradients and weights of two blocks.
    beside = gradients if processes > 1 else 0
    passing = 4 * traced.block if sharded else 0
    if recipe.run.compute_copy:
        beside += weights // 2
    peak = weights + moments + average + beside + passing
    peak += max(traced.peak - (trained if processes > 1 and recipe.run.passes > 1 else 0), gradients + traced.largest)
    return StepMemory(weights, gradients, moments, average, traced.activations, peak)


def too_high(recipe: Recipe, images: int) -> int:
    """An upper bound of the bytes of a step with passes of `images` images, from a formula, without a trace."""
    model = recipe.model
    sizes = find_architecture(model.name)
    tokens = (model.image_size // sizes.patch_size) ** 2 + 2 + (model.classes if sizes.class_tokens else 0)
    depth = (sizes.depth + 2) * max(1, sizes.parallel)
    per_token = 60 * sizes.embed_dim + 6 * sizes.num_heads * tokens
    per_image = tokens * depth * per_token + 64 * 3 * model.image_size**2
    weights = 16 * depth * sizes.embed_dim**2 + 4 * sizes.embed_dim * (model.classes + tokens) + 10**6
    doubled = 2 if recipe.loss.cosub else 1
    return 4 * (doubled * images * per_image + 8 * weights)


@dataclass(frozen=True)
class _Traced:
    weights: int
    trained: int  # bytes of weights that have a gradient
    block: int  # bytes of the largest residual block
    largest: int  # bytes of the largest weight tensor
    activations: int
    peak: int  # beyond the weights, with gradients


def _trace(recipe: Recipe, images: int, dtype: torch.dtype, passes: int, on_gpu: bool) -> _Traced:
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second to import, and few starts need it

    with torch.device("meta"):
        model = build_model(recipe.model, 0)
        teacher = None if recipe.distill.kind == "none" else _bare_teacher(recipe)
        batch = blank_batch(recipe, images, torch.device("meta"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device="cpu").train(recipe.model.train_mode)
        freeze(model, recipe.optim)
        recompute(model, recipe.run)
        classifier = (_GpuClassifier if on_gpu else Classifier)(model, recipe, dtype, _CPU)
        taught = None if teacher is None else Teacher(teacher.to_empty(device="cpu"))
        objective = Objective(classifier, recipe, taught)
        batch = tree_map_only(Tensor, lambda each: torch.empty_like(each, device="cpu"), batch)
        live = _LiveBytes()
        live.follow(itertools.chain(model.parameters(), model.buffers()))
        weights = live.now
        live.follow(tree_iter([batch, list(taught.model.parameters()) if taught else []]))
        kept = 0
        with live:
            for _ in range(passes):
                before = live.now
                loss = objective(*batch)
                kept = live.now - (before if kept else weights)
                with classifier.attention():
                    loss.backward()
                del loss
    trained = [each for each in model.parameters() if each.requires_grad]
    block = max(map(_bytes_of, model.blocks), default=0)
    return _Traced(
        weights, sum(each.nbytes for each in trained), block, max(each.nbytes for each in trained), kept,
        live.peak - weights,
    )  # fmt: skip


class _GpuClassifier(Classifier):
    def attention(self) -> Any:
        """The fused kernel, for every type."""
        return nullcontext()


def _bare_teacher(recipe: Recipe) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(recipe.distill.teacher, num_classes=recipe.model.classes)
    return model.requires_grad_(False).eval()


def _bytes_of(module: nn.Module) -> int:
    return sum(each.nbytes for each in module.parameters())


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators make, while the storages live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def follow(self, values: Iterable[Any]) -> None:
        """Counts the storages of the tensors among `values`, each once."""
        for tensor in _tensors(values):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known[key] = weakref.ref(storage, partial(self._forget, key, size))
                self.now += size
                self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int, _: object) -> None:
        del self._known[key]
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.follow(tree_iter(result))
        return result


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor))
