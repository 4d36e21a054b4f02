"""LAMB with the arithmetic of apex FusedLAMB: Triton kernels on GPUs, torch's fused operations elsewhere."""

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deit_fast.optim.base import AddUp, RecipeOptimizer, Setup, WeightAverage, global_norm, inner_product, sgd_update
from deit_fast.optim.compute_copy import write_copies
from deit_fast.recipe.sections import LambOptim


class TensorGroup(NamedTuple):
    """The tensors of a group's parameters that have a gradient, for one step: fp32, all with one memory layout."""

    params: list[Tensor]
    grads: list[Tensor]  # bf16 for the kernels, if there is a bf16 copy
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    averages: list[Tensor | None]  # moving averages of the weights
    copies: list[Tensor | None]  # bf16
    lr: Tensor  # []
    step: Tensor  # [], the number of steps before this one
    betas: tuple[float, float]
    eps: float
    weight_decay: float


def lamb_update(group: TensorGroup, divisor: Tensor | None, skipped: Tensor, scratch: Tensor) -> None:
    """One LAMB step of a group's n tensors p, g, m, v, in place; group.step counts this step already.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  u = m^ / (sqrt(v^) + eps) + weight_decay p;
    p -= lr * ratio * u, with the trust ratio |p| / |u| per tensor, 1 where either norm is 0 and without weight decay
    (apex csrc/multi_tensor_lamb.cu, use_nvlamb off). p, g, m and v of one parameter are fp32 and have one shape.
    Gradients are divided by `divisor` [], in place; None divides by 1. skipped [] is 1 to leave everything unchanged,
    else 0. scratch [s] has room for the largest parameter, s elements, all of them finite. On a GPU the host waits for
    every norm: this function is for CPUs, and for checking the kernels.
    """
    if group.weight_decay == 0:  # without a trust ratio LAMB is Adam
        _adam(group, group.params, 0, group.lr, divisor, skipped)
        return
    # One tensor at a time, so that its direction stays in the CPU's cache. Weight decay is applied in the last pass.
    lr = float(group.lr)
    for index in reversed(range(len(group.params))):
        param = group.params[index]
        direction = scratch.as_strided(param.shape, param.stride())
        # The factor on the old values is 0, so the scratch memory is overwritten.
        _adam(group, [direction], index, -1.0, divisor, skipped, weight_decay=-1.0)
        ratio = _trust_ratio(_flat(param), _flat(direction), group.weight_decay)
        sgd_update([param], [direction], lr * ratio, skipped, weight_decay=group.weight_decay)


def _trust_ratio(param: Tensor, direction: Tensor, weight_decay: float) -> float:
    """|p| / |d + weight_decay p|, 1 where either norm is 0, from three inner products: the sum is never stored."""
    param_square = inner_product(param, param)
    parts = inner_product(direction, direction) + weight_decay**2 * param_square
    update_square = parts + 2 * weight_decay * inner_product(param, direction)
    if update_square < 0.01 * parts:  # the terms cancel, and too few digits remain
        update = torch.add(direction, param, alpha=weight_decay)
        update_square = inner_product(update, update)
    return math.sqrt(param_square / update_square) if param_square > 0 and update_square > 0 else 1.0


def _flat(tensor: Tensor) -> Tensor:
    """A dense tensor's elements [n] in memory order."""
    return tensor.as_strided((tensor.numel(),), (1,))


def sharded_lamb_update(groups: Sequence[TensorGroup], divisor: Tensor | None, skipped: Tensor, add_up: AddUp) -> None:
    """`lamb_update` of all groups where each process holds a part of every tensor; one sum gives the norms of all.

    divisor [], skipped []: as in `lamb_update`. add_up: sums fp32 [2 n] over the processes, the squared norms of n
    decayed tensors and of their updates.
    """
    updates: list[Sequence[Tensor]] = []
    for group in groups:
        if group.weight_decay == 0:
            _adam(group, group.params, 0, group.lr, divisor, skipped)
            continue
        updates.append(torch._foreach_mul(group.params, group.weight_decay))
        _adam(group, updates[-1], 0, -1.0, divisor, skipped)
    if not updates:
        return
    decayed = [group for group in groups if group.weight_decay]
    tensors = [*(p for group in decayed for p in group.params), *(u for part in updates for u in part)]
    param_norms, update_norms = add_up(torch.stack(torch._foreach_norm(tensors)).square()).sqrt().chunk(2)
    ratios = iter(torch.where((param_norms > 0) & (update_norms > 0), param_norms / update_norms, 1.0))
    for group, part in zip(decayed, updates, strict=True):
        for param, update in zip(group.params, part, strict=True):
            sgd_update([param], [update], group.lr * next(ratios), skipped)


def _adam(
    group: TensorGroup,
    targets: Sequence[Tensor],
    first: int,
    lr: float | Tensor,
    divisor: Tensor | None,
    skipped: Tensor,
    weight_decay: float = 0.0,
) -> None:
    """targets = (1 - lr weight_decay) targets - lr m^ / (sqrt(v^) + eps), by parameters `first`, `first` + 1, ..."""
    part = slice(first, first + len(targets))
    torch._fused_adamw_(
        list(targets),
        group.grads[part],
        group.exp_avgs[part],
        group.exp_avg_sqs[part],
        [],
        [group.step] * len(targets),
        lr=lr,
        beta1=group.betas[0],
        beta2=group.betas[1],
        weight_decay=weight_decay,
        eps=group.eps,
        amsgrad=False,
        maximize=False,
        grad_scale=divisor,
        found_inf=skipped,
    )


class Lamb(RecipeOptimizer):
    """LAMB (arXiv:1904.00962) as apex FusedLAMB computes it, for fp32 parameters of any shape and number.

    max_grad_norm: None means no clipping. The trust ratio applies only to parameter groups with weight decay.

    splits: numbers of consecutive rows of a parameter that get a trust ratio each. Thirds of a fused query, key and
    value weight then learn like deit3-jax's three tensors. Rows must be in memory order. The state's form stays.

    copies: bf16 parameters that replace fp32 parameters in the forward pass. A copy's gradient counts as its
    parameter's, and after `step` the copy is the rounded parameter. The optimizer's state does not refer to copies.

    add_up: sums a tensor in place over processes that each hold some elements of every parameter, or none. The norms
    are then those of the whole gradients, parameters and updates.

    fused: None uses the Triton kernels for CUDA parameters where Triton is installed, True requires them, False avoids
    them. The state is the same, so a checkpoint of one path continues on the other.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 1.0,
        average: WeightAverage | None = None,
        splits: Mapping[Tensor, Sequence[int]] = MappingProxyType({}),
        copies: Mapping[Tensor, Tensor] = MappingProxyType({}),
        add_up: AddUp | None = None,
        fused: bool | None = None,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"Lamb: betas={betas}: expected two values in [0, 1)")
        for param, copy in copies.items():
            if (copy.shape, copy.stride(), copy.dtype) != (param.shape, param.stride(), torch.bfloat16):
                raise ValueError(
                    f"Lamb: copy of {tuple(copy.shape)}, strides {copy.stride()}, {copy.dtype}:"
                    f" expected {tuple(param.shape)}, {param.stride()}, torch.bfloat16"
                )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.max_grad_norm, self.average, self._add_up = max_grad_norm, average, add_up
        self._splits, self._copies = splits, copies
        self._scratch = torch.empty(0)
        first = self.param_groups[0]["params"][0]
        if fused is None:
            fused = first.is_cuda and importlib.util.find_spec("triton") is not None
        self._kernels = None
        if fused:
            from deit_fast.optim.lamb_triton import LambKernels

            self._kernels = LambKernels(first.device)

    def update(self) -> None:
        """Updates every parameter that has a gradient. ValueError where one, or a split of it, is not dense fp32."""
        groups = [tensors for group in self.param_groups if (tensors := self._collect(group)).params]
        if not groups:
            return
        if self._kernels is not None:
            decay = 0.0 if self.average is None else self.average.decay
            self.grad_norm, self.skipped = self._kernels.step(groups, self.max_grad_norm, decay, self._add_up)
        else:
            self._step_with_torch(groups)
            if self._copies:
                write_copies(self._copies)
        if self.average is not None:
            fused = [] if self._kernels is None else self.param_groups
            done = {p for group in fused for p in self._active(group)}
            self.average.update([w for w in self.average.weights if w not in done], self.skipped)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of parameters and of their copies."""
        super().zero_grad(set_to_none)
        for copy in self._copies.values():
            if set_to_none:
                copy.grad = None
            elif copy.grad is not None:
                copy.grad.zero_()

    def _step_with_torch(self, groups: list[TensorGroup]) -> None:
        self.grad_norm = global_norm([grad for group in groups for grad in group.grads], self._add_up)
        finite = torch.isfinite(self.grad_norm).to(torch.float32)
        self.skipped = 1.0 - finite
        divisor = None
        if self.max_grad_norm is not None:
            divisor = (self.grad_norm / self.max_grad_norm).clamp(min=1.0)
            # Dividing rewrites the gradients; a host that need not wait for the device looks whether it must.
            if not divisor.is_cuda and divisor == 1:
                divisor = None
        for group in groups:
            group.step.add_(finite)
        if self._add_up is not None:
            sharded_lamb_update(groups, divisor, self.skipped, self._add_up)
            return
        largest = max(param.numel() for group in groups for param in group.params)
        if self._scratch.numel() < largest:  # kept between steps: allocating memory costs more than the pass over it
            self._scratch = torch.zeros(largest, device=self.grad_norm.device)
        for group in reversed(groups):  # reversed: the gradients read last for the norm are still in the cache
            lamb_update(group, divisor, self.skipped, self._scratch)

    def _collect(self, group: dict[str, Any]) -> TensorGroup:
        params = self._active(group)
        states = [self._state_of(p) for p in params]
        device = params[0].device if params else torch.device("cpu")
        if params and group.setdefault("step", torch.zeros((), device=device)).device != device:
            group["step"] = group["step"].to(device)
        lr = group["lr"]

        def cut(tensors: Sequence[Any]) -> list[Any]:
            """One entry of `tensors` per parameter, or one per split of its rows."""
            if not self._splits:
                return list(tensors)
            return [part for p, t in zip(params, tensors, strict=True) for part in self._parts(p, t)]

        return TensorGroup(
            cut(params),
            cut([_laid_out_like(self._grad_of(p), p) for p in params]),
            cut([state["exp_avg"] for state in states]),
            cut([state["exp_avg_sq"] for state in states]),
            cut([None if self.average is None else self.average.of(p) for p in params]),
            cut([self._copies.get(p) for p in params]),
            lr.to(device) if isinstance(lr, Tensor) else torch.full((), lr, device=device),
            group.get("step", torch.zeros(())),
            group["betas"],
            group["eps"],
            group["weight_decay"],
        )

    def _active(self, group: dict[str, Any]) -> list[Any]:
        """The parameters that a step updates."""
        return [p for p in group["params"] if self._copies.get(p, p).grad is not None]

    def _grad_of(self, param: Tensor) -> Tensor:
        """The gradient of an active parameter in fp32, for torch's operations."""
        grad = self._copies.get(param, param).grad
        assert grad is not None
        return grad if self._kernels is not None else grad.to(param.dtype)

    def _parts(self, param: Tensor, tensor: Tensor | None) -> Sequence[Tensor | None]:
        """`tensor`, laid out like `param` or None, cut into the tensors that each get a trust ratio."""
        rows = self._splits.get(param)
        if rows is None:
            return (tensor,)
        if param.shape[0] > 1 and param.stride(0) * param.shape[0] != param.numel():
            shape, strides = tuple(param.shape), param.stride()
            raise ValueError(f"Lamb: splits of a parameter of {shape}, strides {strides}: expected its rows in order")
        return (None,) * len(rows) if tensor is None else tensor.split(list(rows))

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            if param.dtype != torch.float32 or state["exp_avg"].stride() != param.stride():
                raise ValueError(f"Lamb: parameter of {param.dtype}, {param.layout}: expected dense float32 weights")
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = _laid_out_like(state[key], param)
        return state


def _laid_out_like(tensor: Tensor, param: Tensor) -> Tensor:
    """`tensor` with the strides of `param`, which the kernels rely on; those of a checkpoint's tensor may differ."""
    return tensor if tensor.stride() == param.stride() else torch.empty_like(param, dtype=tensor.dtype).copy_(tensor)


def build(section: LambOptim, setup: Setup) -> Lamb:
    """The optimizer of a recipe with optim.name='lamb'."""
    named, shards = setup.model.named_parameters() if section.split_qkv else (), setup.shards
    qkv = [weight for name, weight in named if name.endswith(".qkv.weight")]
    thirds = {setup.own(w): [len(w) // 3] * 3 if shards is None else shards.parts(w, 3) for w in qkv}
    return Lamb(setup.groups, betas=section.betas, eps=section.eps, splits=thirds, copies=setup.copies, **setup.options)
