"""What happens per step, in one block: forward, loss, backward, update, moving average. The host waits for nothing.

The block is plain torch. `prepare` (prepare.py) puts around it what a run asks for, before the first step: the compute
copy and activation checkpointing around the model, torch.compile and DDP around the objective, FSDP2 around the blocks.
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
    exchange: called with whether a backward pass is the step's last, gives the context in which it runs: processes
    exchange their gradients in the last one only. compiled: whether torch.compile worked for the whole objective.
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
        # Dropout and stochastic depth are a function of (seed, step, rank): a resumed run draws what it would have.
        key = (self._seed, self.state.step, self.world.rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        self.classifier.model.train(self.recipe.model.train_mode)
        for group in self.state.optimizer.param_groups:
            group["lr"].fill_(lr * group["lr_scale"])  # a tensor on the device: changing it recompiles nothing
        loss = self.forward_backward(batches)
        self.update(loss)
        self.state.step += 1

    # ------------------------------------------------------------------------------------------- the training step
    def forward_backward(self, batches: Sequence[MicroBatch]) -> Tensor:
        """The mean loss [] of the batches, whose gradients it leaves in the parameters."""
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
        """Moves weights and moving average, unless a gradient is not finite: then the step is skipped, and counted.

        loss: the mean loss [] fp32 of this process's batches, as `forward_backward` returns it, for the meter.
        """
        optimizer = self.state.optimizer
        optimizer.step()  # clips, updates, and moves state.ema in the same pass over memory
        self.meter.add(loss, optimizer.grad_norm, optimizer.skipped)

    # -------------------------------------------------------------------------------------------------------------

    def predictor(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """uint8 images [B, 3, S, S] -> fp32 logits [B, K] with the weights of `model`, the trained or the averaged one.

        The type is that of the training step, and it is compiled where the step is.
        """
        recipe = self.recipe if self.compiled else self.recipe.override(["run.compile=off"])
        return build_predictor(model, recipe, self.classifier.dtype, self.world)


@dataclass
class Meter:
    """Sums since the last log, on the device: losses, gradient norms and counts are read back only then."""

    sums: Tensor  # 4: loss, gradient norm, steps that counted, skipped steps
    skipped_in_a_row: Tensor  # []
    began_here: Tensor  # [] bool, whether this process's own loss was not finite at the first of them

    @classmethod
    def on(cls, device: torch.device) -> Self:
        """A meter on the device that has counted nothing yet."""
        zero = torch.zeros((), device=device)
        return cls(torch.zeros(4, device=device), zero, zero > 0)

    def add(self, loss: Tensor, grad_norm: Tensor, skipped: Tensor) -> None:
        """Counts one step by its loss [], gradient norm [] and whether it was skipped [], 1 or 0, on the device."""
        counted = skipped == 0
        values = torch.stack([loss, grad_norm, counted.to(loss.dtype)])
        self.sums += torch.cat([torch.where(counted, values, 0.0), skipped[None]])
        self.skipped_in_a_row.add_(1).mul_(skipped)
        self.began_here.copy_(torch.where(self.skipped_in_a_row == 1, ~torch.isfinite(loss), self.began_here))
