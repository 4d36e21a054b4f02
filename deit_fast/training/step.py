"""One training step in one block: forward, loss, backward, update, moving average. The host never waits in it.

The block is plain torch. Before the first step, `prepare` (prepare.py) wraps it as the recipe asks: the compute copy
and activation checkpointing around the model, torch.compile and DDP around the objective, FSDP2 around the blocks.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from deit_fast.checkpoint.state import TrainState
from deit_fast.infer.precision import Classifier, build_predictor
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.world import World
from deit_fast.training.objective import MicroBatch


class TrainStep:
    """One optimizer step over `run.accumulation` batches; every process calls it with its own part of the batch.

    classifier: the model that computes. objective: a MicroBatch's fields -> its loss [], as `prepare` wrapped it.
    exchange: takes whether a backward pass is the step's last one, and returns the context in which the pass runs,
    since processes exchange their gradients in the last pass only. compiled: whether torch.compile succeeded for the
    whole objective.
    """

    def __init__(
        self,
        recipe: Recipe,
        state: TrainState,
        world: World,
        classifier: Classifier,
        objective: nn.Module,
        exchange: Callable[[bool], AbstractContextManager[object]] = contextlib.nullcontext,
        compiled: bool = False,
    ) -> None:
        self.recipe, self.state, self.world = recipe, state, world
        self.classifier, self.objective, self.compiled = classifier, objective, compiled
        self.meter = Meter.on(world.device)
        self._exchange = exchange
        self._seed = recipe.run.seed_of("dropout")

    def __call__(self, batches: Sequence[MicroBatch], lr: float) -> None:
        """Trains on the batches of one step at the learning rate `lr`, and counts the step in the state."""
        # Dropout and stochastic depth are functions of (seed, step, rank), so that a resumed run draws the same
        # numbers.
        key = (self._seed, self.state.step, self.world.rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        self.classifier.model.train(self.recipe.model.train_mode)
        for group in self.state.optimizer.param_groups:
            group["lr"].fill_(lr * group["lr_scale"])  # a tensor on the device: a new value causes no recompilation
        loss = self.forward_backward(batches)
        self.update(loss)
        self.state.step += 1

    # ------------------------------------------------------------------------------------------- the training step
    def forward_backward(self, batches: Sequence[MicroBatch]) -> Tensor:
        """The mean loss [] of the batches; their gradients are left in the parameters."""
        self.state.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.world.device)
        for number, batch in enumerate(batches, start=1):
            with self._exchange(number == len(batches)):
                loss = self.objective(*batch) / len(batches)  # forward: normalise, erase, mix, model, loss
                with self.classifier.attention():
                    loss.backward()
            total += loss.detach()
        return total

    def update(self, loss: Tensor) -> None:
        """Updates weights and moving average. A step with a gradient that is not finite is skipped and counted so.

        loss: the mean loss [] fp32 of this process's batches, from `forward_backward`, for the meter.
        """
        optimizer = self.state.optimizer
        optimizer.step()  # clips, updates, and moves state.ema in the same pass over memory
        self.meter.add(loss, optimizer.grad_norm, optimizer.skipped)

    # -------------------------------------------------------------------------------------------------------------

    def predictor(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """uint8 images [B, 3, S, S] -> fp32 logits [B, K] with the weights of `model`, the trained or the averaged one.

        The function computes in the type of the training step, and is compiled if the step is.
        """
        recipe = self.recipe if self.compiled else self.recipe.override(["run.compile=off"])
        return build_predictor(model, recipe, self.classifier.dtype, self.world)


@dataclass
class Meter:
    """Sums since the last log, on the device: losses, gradient norms and counts are read only at the next log."""

    sums: Tensor  # [4]: loss, gradient norm, counted steps, skipped steps
    skipped_in_a_row: Tensor  # []
    began_here: Tensor  # [] bool, whether this process's own loss was not finite at the row's first step

    @classmethod
    def on(cls, device: torch.device) -> Self:
        """A meter on the device, with all sums at zero."""
        zero = torch.zeros((), device=device)
        return cls(torch.zeros(4, device=device), zero, zero > 0)

    def add(self, loss: Tensor, grad_norm: Tensor, skipped: Tensor) -> None:
        """Counts one step by its loss [], gradient norm [] and whether it was skipped [], 1 or 0, on the device."""
        counted = skipped == 0
        values = torch.stack([loss, grad_norm, counted.to(loss.dtype)])
        self.sums += torch.cat([torch.where(counted, values, 0.0), skipped[None]])
        self.skipped_in_a_row.add_(1).mul_(skipped)
        self.began_here.copy_(torch.where(self.skipped_in_a_row == 1, ~torch.isfinite(loss), self.began_here))
