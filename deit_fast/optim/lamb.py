"""LAMB with the arithmetic of apex FusedLAMB, in plain torch: no apex, no nvcc, no host synchronisation."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def lamb_update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    step: Tensor,
    finite: Tensor,
    lr: Tensor | float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One LAMB step, in place, over tensors of any shapes; `grads` are clipped already and are overwritten.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  u = m^ / (sqrt(v^) + eps) + weight_decay p;
    p -= lr * ratio * u, with the trust ratio |p| / |u| per tensor, 1 where either norm is 0 and where nothing decays
    (apex csrc/multi_tensor_lamb.cu, use_nvlamb off). step [] counts from 1. finite [] is 1, or 0 to leave everything
    as it was; the gradients must be finite in both cases.
    """
    beta1, beta2 = betas
    gain1, gain2 = (1.0 - beta1) * finite, (1.0 - beta2) * finite
    torch._foreach_mul_(exp_avgs, 1.0 - gain1)
    torch._foreach_mul_(exp_avg_sqs, 1.0 - gain2)
    torch._foreach_add_(exp_avg_sqs, torch._foreach_mul(torch._foreach_mul(grads, grads), gain2))
    torch._foreach_mul_(grads, gain1)
    torch._foreach_add_(exp_avgs, grads)

    # 1 - beta^step through expm1: in fp32, 1 - 0.999 is off by 5e-5 of itself.
    correction1, correction2 = (-torch.expm1(step * math.log(beta or 5e-324)) for beta in betas)
    updates = torch._foreach_mul(exp_avg_sqs, 1.0 / correction2)
    torch._foreach_sqrt_(updates)
    torch._foreach_add_(updates, eps)
    torch._foreach_reciprocal_(updates)
    torch._foreach_mul_(updates, exp_avgs)
    torch._foreach_mul_(updates, 1.0 / correction1)
    scale = -lr * finite
    if weight_decay != 0:
        torch._foreach_add_(updates, params, alpha=weight_decay)
        param_norms = torch.stack(torch._foreach_norm(params))
        update_norms = torch.stack(torch._foreach_norm(updates))
        adapts = (param_norms > 0) & (update_norms > 0)
        ratios = torch.where(adapts, param_norms / update_norms, 1.0)
        torch._foreach_mul_(updates, list((ratios * scale).unbind()))
    else:
        torch._foreach_mul_(updates, scale)
    torch._foreach_add_(params, updates)


class Lamb(torch.optim.Optimizer):
    """LAMB (arXiv:1904.00962) as apex FusedLAMB computes it, with fp32 parameters of any shape and count.

    The global norm of all gradients is clipped to max_grad_norm (None is no clipping), the trust ratio applies to
    parameter groups with weight decay only. After `step`, `grad_norm` [] holds the norm before clipping and
    `skipped` [] is 1 where it was not finite: then neither parameters nor state have changed. Both stay on the
    device.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"Lamb: betas={betas}: expected two values in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.max_grad_norm = max_grad_norm
        self.grad_norm: Tensor = torch.zeros(())
        self.skipped: Tensor = torch.zeros(())

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient. Raises ValueError for parameters that are not dense fp32."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        grads = [p.grad for _, params in trained for p in params]
        if not grads:
            return loss
        self.grad_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        is_finite = torch.isfinite(self.grad_norm)
        finite = is_finite.to(torch.float32)
        self.skipped = 1.0 - finite
        # A skipped step still runs, on zeros: the host never has to ask. where, not a product: 0 * inf is not 0.
        grads = [torch.where(is_finite, grad, 0.0) for grad in grads]
        if self.max_grad_norm is not None:
            torch._foreach_mul_(grads, (self.max_grad_norm / self.grad_norm).nan_to_num(1.0).clamp(max=1.0))
        remaining = iter(grads)
        for group, params in trained:
            if not params:
                continue
            states = [self._state_of(p) for p in params]
            step = group.setdefault("step", torch.zeros((), device=params[0].device))
            step += finite
            lamb_update(
                params,
                [next(remaining) for _ in params],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                step.clamp(min=1.0),
                finite,
                group["lr"],
                group["betas"],
                group["eps"],
                group["weight_decay"],
            )
        return loss

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            if param.dtype != torch.float32 or param.layout != torch.strided:
                raise ValueError(f"Lamb: parameter of {param.dtype}, {param.layout}: expected dense float32 weights")
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state
