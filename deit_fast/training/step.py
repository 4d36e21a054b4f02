"""What happens per step: forward and backward over its batches, update, moving average. No host synchronisation."""

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from deit_fast.checkpoint.state import TrainState
from deit_fast.infer.compile import compile_blocks, compile_or_stay, try_gradient, wants_compile
from deit_fast.infer.precision import Classifier, build_predictor
from deit_fast.models.build import ImageModel
from deit_fast.models.recompute import recompute
from deit_fast.optim.build import build_optimizer, freeze, set_learning_rate
from deit_fast.optim.compute_copy import copy_to_compute
from deit_fast.optim.sharding import Shards, shard_model, sync_gradients
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
