"""torch's fused AdamW and SGD behind Lamb's interface: clipping, moving average, skipped steps, all on the device."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from deit_fast.optim.average import WeightAverage
from deit_fast.optim.norms import AddUp, global_norm


class _Clipped(torch.optim.Optimizer):
    """What a fused optimizer of torch lacks of Lamb's interface; it comes before that optimizer among the bases.

    The global norm of all gradients is clipped to max_grad_norm (None is no clipping). `average` moves with the
    weights. After `step`, `grad_norm` [] holds the norm before clipping and `skipped` [] is 1 where it was not finite:
    then neither parameters nor averages nor state have changed. The step may scale the gradients. add_up: as Lamb's.
    """

    def __init__(
        self,
        params: Iterable[Any],
        max_grad_norm: float | None,
        average: WeightAverage | None = None,
        add_up: AddUp | None = None,
        **options: Any,
    ) -> None:
        super().__init__(params, fused=True, **options)  # type: ignore[call-arg]
        self._add_up = add_up
        self.max_grad_norm = max_grad_norm
        self.average = average
        self.grad_norm: Tensor = torch.zeros(())
        self.skipped: Tensor = torch.zeros(())

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.grad_norm = global_norm(grads, self._add_up)
        # The fused kernels' own switch, meant for a GradScaler: 1 leaves parameters and state as they were.
        self.found_inf = self.skipped = 1.0 - torch.isfinite(self.grad_norm).to(torch.float32)
        if self.max_grad_norm is not None:
            torch._foreach_mul_(grads, (self.max_grad_norm / self.grad_norm).nan_to_num(1.0).clamp(max=1.0))
        super().step()
        if self.average is not None:
            self.average.update(self.average.weights, self.skipped)
        return loss


class ClippedAdamW(_Clipped, torch.optim.AdamW):
    """AdamW (arXiv:1711.05101) with decoupled weight decay."""


class ClippedSGD(_Clipped, torch.optim.SGD):
    """SGD with momentum and coupled weight decay, which is added to the gradient after clipping."""

    def __init__(self, params: Iterable[Any], max_grad_norm: float | None, **options: Any) -> None:
        super().__init__(params, max_grad_norm, **options)
        # From zeros the first step is torch's own. Left to torch, the buffers would begin uninitialised, and a first
        # step that is skipped would leave them so for the second.
        for group in self.param_groups:
            for param in group["params"] if group["momentum"] else ():
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
