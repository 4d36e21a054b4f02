"""The exponential moving average of the weights, kept by whichever optimizer moves them."""

from collections.abc import Iterable

import torch
from torch import Tensor


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
        """The weights that have an average."""
        return self._averages.keys()

    def of(self, weight: Tensor) -> Tensor | None:
        """The average of `weight`, None where it has none."""
        return self._averages.get(weight)

    @torch.no_grad()
    def update(self, weights: Iterable[Tensor], skipped: Tensor) -> None:
        """Moves the averages of `weights`; skipped [] is 1 to leave them, else 0, on the weights' device."""
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
    """tensors -= lr * (directions + weight_decay * tensors), or with `pull` tensors -= lr * (tensors - directions),
    unless skipped [] is 1.

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
