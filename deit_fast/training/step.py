"""What happens per step: forward and backward over its batches, update, moving average. No host synchronisation."""

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from deit_fast.infer.compile import compile_blocks, compile_or_stay, try_gradient, wants_compile
from deit_fast.infer.precision import Classifier, build_predictor
from deit_fast.models.build import ImageModel
from deit_fast.models.recompute import recompute
from deit_fast.optim.build import RecipeOptimizer, build_optimizer, freeze, set_learning_rate
from deit_fast.optim.compute_copy import copy_to_compute, write_copies
from deit_fast.optim.sharding import Shards, cut_weights, shard_model, sync_gradients
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import RecipeError
from deit_fast.runtime.world import World
from deit_fast.training.cuda_graph import StepGraphs, check_capture
from deit_fast.training.distill import Teacher
from deit_fast.training.objective import MicroBatch, Objective


@dataclass
class Meter:
    """Sums since the last log, on the device: losses, gradient norms and counts are read back only then."""

    sums: Tensor  # loss, gradient norm, steps that counted, skipped steps
    skipped_in_a_row: Tensor
    began_here: Tensor  # whether this process's own loss was not finite at the first of them

    @classmethod
    def on(cls, device: torch.device) -> Self:
        zero = torch.zeros((), device=device)
        return cls(torch.zeros(4, device=device), zero, zero > 0)

    def add(self, loss: Tensor, grad_norm: Tensor, skipped: Tensor) -> None:
        """Counts one step: scalars [] on the device; skipped is 1 where the step was."""
        counted = skipped == 0
        values = torch.stack([loss, grad_norm, counted.to(loss.dtype)])
        self.sums += torch.cat([torch.where(counted, values, 0.0), skipped[None]])
        self.skipped_in_a_row.add_(1).mul_(skipped)
        self.began_here.copy_(torch.where(self.skipped_in_a_row == 1, ~torch.isfinite(loss), self.began_here))


@dataclass
class TrainState:
    """All that a resumed run needs; the position in the data follows from the step."""

    PLAIN: ClassVar = (
        "step", "skipped", "seconds", "timed_steps", "timed_seconds", "best_top1", "scores", "bad_images"
    )  # fmt: skip

    model: ImageModel
    ema: ImageModel | None
    optimizer: RecipeOptimizer
    shards: Shards | None = None  # what the optimizer moves, where the model is sharded
    compute: ImageModel | None = None  # the model that the step computes with, where it is a copy of `model`
    copies: dict[Tensor, nn.Parameter] = field(default_factory=dict)  # its own weights, of no state dict
    step: int = 0
    skipped: int = 0
    seconds: float = 0.0
    timed_steps: int = 0
    timed_seconds: float = 0.0
    best_top1: float = -1.0
    scores: dict[str, float] = field(default_factory=dict)
    bad_images: dict[int, str] = field(default_factory=dict)

    def add_window(self, steps: int, seconds: float, is_first: bool) -> None:
        """Adds the wall time of some steps; a process's first window, with its warm-up, does not count for speed."""
        self.seconds += seconds
        if not is_first:
            self.timed_steps += steps
            self.timed_seconds += seconds

    @property
    def steps_per_second(self) -> float:
        """Without the first windows of the run's processes, where there are others; 0 before the first step."""
        if self.timed_steps:
            return self.timed_steps / self.timed_seconds
        return self.step / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data, as `save_checkpoint` takes them once the tensors of a sharded model are whole."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict() if self.shards is None else self.shards.join_state(self.optimizer),
            **{key: getattr(self, key) for key in self.PLAIN},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave, of a run of the same recipe; where the model is sharded, from whole tensors
        in host memory."""
        self.load_weights(state["model"], state["ema"])
        optimizer = state["optimizer"]
        self.optimizer.load_state_dict(
            optimizer if self.shards is None else self.shards.cut_state(self.optimizer, optimizer)
        )
        for key in self.PLAIN:
            setattr(self, key, state[key])

    def load_weights(self, weights: dict[str, Tensor], averages: dict[str, Tensor] | None = None) -> None:
        """Weights of the model, and of its moving average where there is one, whole tensors with timm's names."""
        for model, tensors in ((self.model, weights), (self.ema, averages)):
            if model is not None:
                assert tensors is not None
                model.load_state_dict(tensors if self.shards is None else cut_weights(tensors, model))
        write_copies(self.copies)


def build_state(recipe: Recipe, model: ImageModel, mesh: DeviceMesh | None = None) -> TrainState:
    """Optimizer and moving average for a model with its initial weights: on its device, or in host memory with a `mesh`
    over whose devices it is to be sharded."""
    ema = None
    if recipe.optim.ema_decay is not None:
        ema = copy.deepcopy(model).requires_grad_(False).eval()
        for own, average in zip(model.modules(), ema.modules(), strict=True):
            average._buffers = own._buffers  # running statistics are averages already: one set serves both
    shards = None
    if mesh is not None:
        for each in [model] if ema is None else [model, ema]:
            shard_model(each, mesh, recipe.run.reduce_dtype)
        shards = Shards(model)
    compute: ImageModel | None = None
    copies: dict[Tensor, nn.Parameter] = {}
    if recipe.run.compute_copy:
        freeze(model, recipe.optim)  # the copy freezes with it
        compute, copies = copy_to_compute(model)
    return TrainState(model, ema, build_optimizer(recipe.optim, model, ema, shards, copies), shards, compute, copies)


def check_copy(recipe: Recipe, dtype: torch.dtype, world: World) -> None:
    """Raises RecipeError where run.compute_copy=true cannot be."""
    if dtype != torch.bfloat16:
        raise RecipeError(f"run.compute_copy=true: expected a run that computes in bf16, got {dtype}")
    if world.size > 1 and recipe.run.reduce_dtype != "bf16":
        raise RecipeError(
            f"run.compute_copy=true: expected run.reduce_dtype='bf16' for {world.size} processes, "
            f"got {recipe.run.reduce_dtype!r}"
        )


class TrainStep:
    """One optimizer step over `run.accumulation` batches; every process calls it with its own part of the batch."""

    def __init__(
        self, recipe: Recipe, state: TrainState, world: World, dtype: torch.dtype, teacher: Teacher | None = None
    ) -> None:
        self.recipe, self.state, self.world = recipe, state, world
        if recipe.run.compute_copy:
            check_copy(recipe, dtype, world)
        self.model = state.model if state.compute is None else state.compute
        recompute(self.model, recipe.run)  # the moving average, a copy from before, has no use for it
        self.classifier = Classifier(self.model, recipe, dtype, world.device)
        self.objective = Objective(self.classifier, recipe, teacher)
        self.ddp: DistributedDataParallel | None = None
        self._loss: nn.Module | None = None  # the objective as it runs, compiled and in DDP: from the first step on
        self.compiled = wants_compile(recipe.run, world.device)  # then known
        self.meter = Meter.on(world.device)
        self._graphs: StepGraphs | None = None
        if recipe.run.cuda_graph:
            check_capture(world)
            self._graphs = StepGraphs(
                lambda batch: self._backward([batch]), self._update, lambda: state.optimizer.zero_grad(set_to_none=True)
            )

    def __call__(self, batches: Sequence[MicroBatch], lr: float) -> None:
        state = self.state
        # Dropout and stochastic depth are a function of (seed, step, rank): a resumed run draws what it would have.
        key = (self.recipe.run.seed_of("dropout"), state.step, self.world.rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        self.model.train(self.recipe.model.train_mode)
        set_learning_rate(state.optimizer, lr)
        if self._loss is None:
            self._loss = self._build_loss(batches[0])
        if self._graphs is not None:
            self._graphs(batches[0])
        else:
            self._update(self._backward(batches))
            state.optimizer.zero_grad(set_to_none=True)
        state.step += 1

    def _backward(self, batches: Sequence[MicroBatch]) -> Tensor:
        """The mean loss [] of the batches; its gradients are added to those of the parameters."""
        assert self._loss is not None
        total = torch.zeros((), device=self.world.device)
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            if self.state.shards is not None:
                sync_gradients(self.state.model, last)
            with contextlib.nullcontext() if last or self.ddp is None else self.ddp.no_sync():
                loss = self._loss(*batch) / len(batches)
                with self.classifier.attention():
                    loss.backward()
            total += loss.detach()
        return total

    def _update(self, loss: Tensor) -> None:
        optimizer = self.state.optimizer
        optimizer.step()  # moves state.ema as well
        self.meter.add(loss, optimizer.grad_norm, optimizer.skipped)

    def _build_loss(self, batch: MicroBatch) -> nn.Module:
        """The objective, compiled where that works for this batch, inside DDP where there are several processes.

        Of a sharded model each block is compiled by itself. Otherwise: compiled outside DDP and called inside, which is
        one region without graph breaks at the buckets, but all gradients arrive together at its end. Compiled at a call
        of DDP's, torch would cut it at every bucket.
        """
        device, run = self.world.device, self.recipe.run
        if self.state.shards is not None:
            models = [model for model in (self.state.model, self.state.ema) if model is not None]
            compile_blocks(models, self.recipe, self.classifier.run, self.world)
            self.compiled = False  # as a whole, which it cannot be
            return self.objective
        chosen = compile_or_stay(self.objective, lambda module: try_gradient(module, batch, device), run, self.world)
        self.compiled = chosen is not self.objective
        if self.world.size == 1:
            return chosen
        self.ddp = DistributedDataParallel(
            chosen,
            gradient_as_bucket_view=True,
            static_graph=run.accumulation == 1,  # a static graph does not allow no_sync
        )
        if run.reduce_dtype == "bf16":
            self.ddp.register_comm_hook(None, bf16_compress_hook)
        return self.ddp

    def predictor(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """`build_predictor` in the type and on the device of the training step, and eager where that had to be."""
        recipe = self.recipe if self.compiled else self.recipe.override(["run.compile=off"])
        return build_predictor(model, recipe, self.classifier.dtype, self.world)
