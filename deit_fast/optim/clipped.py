"""Gradient clipping, skipped steps and the moving average around torch's optimizers, all on the device."""

import inspect
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch

from deit_fast.optim.base import AddUp, RecipeOptimizer, WeightAverage, global_norm


class Clipped(RecipeOptimizer):
    """A RecipeOptimizer without `move`: a subclass defines it, or inherits it from torch's optimizer among its bases.

    max_grad_norm: None means no clipping. add_up: as in Lamb. All other options are those of torch's optimizer.
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
        # found_inf is the fused kernels' own switch, made for GradScaler: 1 leaves parameters and state unchanged.
        self.found_inf = self.skipped = 1.0 - torch.isfinite(self.grad_norm).to(torch.float32)
        if self.max_grad_norm is not None:
            torch._foreach_mul_(grads, (self.max_grad_norm / self.grad_norm).nan_to_num(1.0).clamp(max=1.0))
        self.move()
        if self.average is not None:
            self.average.update(self.average.weights, self.skipped)

    def move_as(self, kind: type[torch.optim.Optimizer]) -> None:
        """Steps as torch's own class `kind`, one of the bases, but without running the step's hooks again.

        torch wraps the `step` of each class of which an optimizer was created, in order to call the hooks. That
        includes `kind` where a program has created a plain optimizer of it before (torch/optim/optimizer.py, 2.14).
        """
        inspect.unwrap(kind.step, stop=lambda step: not hasattr(step, "hooked"))(self)

    @abstractmethod
    def move(self) -> None:
        """Updates parameters and state from their clipped gradients.

        If `self.skipped` [] is 1, both must stay unchanged: gradients may be non-finite then. The host must not wait
        for the device.
        """
