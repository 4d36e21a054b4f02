"""Gradient clipping, skipped steps and the moving average around torch's optimizers, all on the device."""

import inspect
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch

from deit_fast.optim.base import AddUp, RecipeOptimizer, WeightAverage, global_norm


class Clipped(RecipeOptimizer):
    """A RecipeOptimizer that lacks `move`: a subclass writes it, or has it from torch's optimizer among its bases.

    max_grad_norm: None is no clipping. add_up: as Lamb's. All other options are torch's optimizer's.
    """

    def __init__(
        self,
        params: Iterable[Any],
        max_grad_norm: float | None,
        average: WeightAverage | None = None,
        add_up: AddUp | None = None,
        **options: Any,
    ) -> None:
        super().__init__(params, **options)
        self._add_up = add_up
        self.max_grad_norm = max_grad_norm
        self.average = average

    def update(self) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.grad_norm = global_norm(grads, self._add_up)
        # The fused kernels' own switch, meant for a GradScaler: 1 leaves parameters and state as they were.
        self.found_inf = self.skipped = 1.0 - torch.isfinite(self.grad_norm).to(torch.float32)
        if self.max_grad_norm is not None:
            torch._foreach_mul_(grads, (self.max_grad_norm / self.grad_norm).nan_to_num(1.0).clamp(max=1.0))
        self.move()
        if self.average is not None:
            self.average.update(self.average.weights, self.skipped)

    def move_as(self, kind: type[torch.optim.Optimizer]) -> None:
        """Moves as torch's own class `kind`, one of the bases, does, without running the hooks of the step once more.

        torch puts the call of the hooks around the `step` of each class of which an optimizer was made: around that of
        `kind` too, where a program has made a plain one before (torch/optim/optimizer.py, 2.14).
        """
        inspect.unwrap(kind.step, stop=lambda step: not hasattr(step, "hooked"))(self)

    @abstractmethod
    def move(self) -> None:
        """Moves parameters and state by their gradients, which are clipped.

        Both stay as they were where `self.skipped` [] is 1: gradients may be non-finite then. The host must not wait
        for the device.
        """
