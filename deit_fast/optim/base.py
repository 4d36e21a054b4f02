"""What all optimizers share: the class `RecipeOptimizer`, the weights' moving average, fused updates and norms."""

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
"""Sums a tensor over the processes that hold the parts, in place, and returns it."""

BLOCK = 8192  # longer products a BLAS may share out over threads of its own, beside torch's


class RecipeOptimizer(torch.optim.Optimizer, ABC):
    """A torch optimizer that clips, skips steps and moves the average by itself, without the host waiting for a device.

    The global norm of all gradients is clipped to max_grad_norm. After `step`, `grad_norm` [] holds the norm before
    clipping, and `skipped` [] is 1 where it was not finite: then neither parameters nor averages nor state have
    changed. Both are fp32 on the parameters' device, and the next step may overwrite them. The step may scale the
    gradients. The learning rate of each group is a tensor [] that may change between steps.
    """

    # torch's own, without its decorator: that imports the compiler, to exclude them from what is compiled. These calls
    # are in no compiled region.
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
        """One step; `closure`, where there is one, is called before it, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update()
        return loss

    @abstractmethod
    def update(self) -> None:
        """Moves parameters, state and averages by the gradients, and sets `grad_norm` and `skipped`."""


@dataclass(frozen=True)
class Setup:
    """What `build(section, setup)` of an optimizer's module makes its optimizer of."""

    groups: list[dict[str, Any]]
    """What it moves: "params", their "lr" [], "lr_scale" and "weight_decay"."""
    options: dict[str, Any]
    """lr, max_grad_norm, average and add_up, which every optimizer here takes by name."""
    model: nn.Module
    """Whose parameters these are, for an optimizer that asks for names."""
    own: Callable[[Tensor], Tensor]
    """What stands in the groups for a parameter of the model: itself, or this process's rows of a sharded one."""
    shards: Shards | None
    """The shards of a sharded model; None: each process has the model whole."""
    copies: Mapping[Tensor, Tensor]
    """bf16 stand-ins of parameters, which LAMB alone writes."""


class WeightAverage:
    """average = decay * average + (1 - decay) * weight after every optimizer step, for each pair of tensors.

    A step that is skipped for a non-finite gradient leaves the averages as they were, as if it had not been.
    Raises ValueError where an average is not laid out like its weight.
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
        """The average of `weight`, which has the weight's shape [...]; None where it has none."""
        return self._averages.get(weight)

    @torch.no_grad()
    def update(self, weights: Iterable[Tensor], skipped: Tensor) -> None:
        """Moves the averages of `weights`, tensors of any shape [...].

        skipped []: 1 to leave them, else 0, on the weights' device.
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

    In place, unless skipped [] is 1. A direction has its tensor's shape [...]; lr is a number or a tensor [].

    torch's fused SGD: one pass over memory, and both lr and the decision to skip may stay on the device. The pull is
    its weight decay of 1 against a negated gradient.
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
    """The L2 norm [] of all elements of `tensors`, of any shape [...]; with `add_up`, of those of all processes."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
    return norm if add_up is None else add_up(norm.square()).sqrt()


def inner_product(a: Tensor, b: Tensor) -> float:
    """Sum of a * b for the host, fp32 [n] each, exact to about 1e-8: in fp32 within blocks, in float64 over them.

    It is inf or nan, without a warning, where it overflows: a step with such a gradient is skipped.
    torch's CPU reductions of a vector add in one chain: for 600,000 numbers that loses two digits more, and takes half
    as long again. On a GPU the host waits.
    """
    if a.is_cuda:
        return float(torch.dot(a.double(), b.double()))
    x, y = a.numpy(), b.numpy()
    whole = len(x) - len(x) % BLOCK
    with np.errstate(over="ignore", invalid="ignore"):
        blocks = np.matmul(x[:whole].reshape(-1, 1, BLOCK), y[:whole].reshape(-1, BLOCK, 1))
        return float(blocks.sum(dtype=np.float64)) + float(np.dot(x[whole:], y[whole:]))
