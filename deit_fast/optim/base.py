"""The parts that all optimizers share: `RecipeOptimizer`, the weights' moving average, fused updates and norms."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deit_fast.optim.sharding import Shards

AddUp = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes that hold its parts, in place, and returns it."""

BLOCK = 8192  # a BLAS may split longer products over threads of its own, besides torch's


class RecipeOptimizer(torch.optim.Optimizer, ABC):
    """A torch optimizer that clips, skips steps and updates the moving average; the host never waits for the device.

    The global norm of all gradients is clipped to max_grad_norm. After `step`, `grad_norm` [] holds the norm before
    clipping, and `skipped` [] is 1 if that norm was not finite. A skipped step changes neither parameters nor averages
    nor state. Both results are fp32 on the parameters' device, and the next step may overwrite them. A step may scale
    the gradients in place. The learning rate of each group is a tensor [] that may change between steps.
    """

    # These are torch's own methods without their decorator, which imports the compiler in order to exclude them from
    # compilation. No compiled region calls them.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def __init__(self, *params: Any, **options: Any) -> None:
        super().__init__(*params, **options)
        self.grad_norm: Tensor = torch.zeros(())
        self.skipped: Tensor = torch.zeros(())

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step. `closure`, if given, is called first, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update()
        return loss

    @abstractmethod
    def update(self) -> None:
        """Updates parameters, state and averages from the gradients, and sets `grad_norm` and `skipped`."""


@dataclass(frozen=True)
class Setup:
    """The arguments of an optimizer module's `build(section, setup)`."""

    groups: list[dict[str, Any]]
    """Parameter groups: "params", their "lr" [], "lr_scale" and "weight_decay"."""
    options: dict[str, Any]
    """lr, max_grad_norm, average and add_up: keyword arguments of every optimizer here."""
    model: nn.Module
    """The model of these parameters, for an optimizer that needs the parameters' names."""
    own: Callable[[Tensor], Tensor]
    """Maps a parameter of the model to the tensor in the groups: itself, or this process's rows if it is sharded."""
    shards: Shards | None
    """The shards of a sharded model; None if each process has the whole model."""
    copies: Mapping[Tensor, Tensor]
    """bf16 copies of parameters; only LAMB writes them."""


class WeightAverage:
    """average = decay * average + (1 - decay) * weight after every optimizer step, for each pair of tensors.

    A step that is skipped for a non-finite gradient leaves the averages unchanged. Raises ValueError where an average
    has another memory layout than its weight.
    """

    def __init__(self, weights: Iterable[Tensor], averages: Iterable[Tensor], decay: float) -> None:
        self.decay = decay
        self._averages = {w: a.detach() for w, a in zip(weights, averages, strict=True)}
        for weight, average in self._averages.items():
            if (weight.shape, weight.stride(), weight.dtype) != (average.shape, average.stride(), average.dtype):
                raise ValueError(
                    f"WeightAverage: average of {tuple(average.shape)}, strides {average.stride()}, {average.dtype}:"
                    f" expected {tuple(weight.shape)}, {weight.stride()}, {weight.dtype} like its weight"
                )

    @property
    def weights(self) -> Iterable[Tensor]:
        """The weights that have an average, tensors of any shape [...]."""
        return self._averages.keys()

    def of(self, weight: Tensor) -> Tensor | None:
        """The average of `weight`, which has the weight's shape [...]; None if there is none."""
        return self._averages.get(weight)

    @torch.no_grad()
    def update(self, weights: Iterable[Tensor], skipped: Tensor) -> None:
        """Updates the averages of `weights`, tensors of any shape [...].

        skipped []: on the weights' device, 1 leaves the averages unchanged, 0 updates them.
        """
        followed = [w.detach() for w in weights if w in self._averages]
        averages = [self._averages[w] for w in weights if w in self._averages]
        if followed:
            sgd_update(averages, followed, 1.0 - self.decay, skipped, pull=True)


def sgd_update(
    tensors: list[Tensor],
    directions: list[Tensor],
    lr: float | Tensor,
    skipped: Tensor,
    *,
    weight_decay: float = 0.0,
    pull: bool = False,
) -> None:
    """tensors -= lr * (directions + weight_decay * tensors), or with `pull` tensors -= lr * (tensors - directions).

    Works in place, unless skipped [] is 1. A direction has its tensor's shape [...]; lr is a number or a tensor []. The
    implementation is torch's fused SGD: one pass over memory, and both lr and the decision to skip may stay on the
    device. The pull is a weight decay of 1 against a negated gradient.
    """
    torch._fused_sgd_(
        tensors,
        directions,
        [],
        weight_decay=1.0 if pull else weight_decay,
        momentum=0.0,
        lr=lr,
        dampening=0.0,
        nesterov=False,
        maximize=pull,
        is_first_step=False,
        grad_scale=None,
        found_inf=skipped,
    )


def global_norm(tensors: Sequence[Tensor], add_up: AddUp | None = None) -> Tensor:
    """The L2 norm [] of all elements of `tensors`, of any shape [...]; with `add_up`, over all processes."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
    return norm if add_up is None else add_up(norm.square()).sqrt()


def inner_product(a: Tensor, b: Tensor) -> float:
    """Sum of a * b for the host, fp32 [n] each, exact to about 1e-8: fp32 within blocks, float64 over the blocks.

    The sum is inf or nan, without a warning, where it overflows: a step with such a gradient is skipped. torch's CPU
    reductions of a vector add in one chain. For 600,000 numbers that loses two more digits and takes 1.5 times as long.
    On a GPU the host waits for the result.
    """
    if a.is_cuda:
        return float(torch.dot(a.double(), b.double()))
    x, y = a.numpy(), b.numpy()
    whole = len(x) - len(x) % BLOCK
    with np.errstate(over="ignore", invalid="ignore"):
        blocks = np.matmul(x[:whole].reshape(-1, 1, BLOCK), y[:whole].reshape(-1, BLOCK, 1))
        return float(blocks.sum(dtype=np.float64)) + float(np.dot(x[whole:], y[whole:]))
