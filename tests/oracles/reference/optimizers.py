"""LAMB as apex FusedLAMB computes it and AdamW by its definition, one tensor after the other in fp32."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

TOKENS = ("pos_embed", "cls_token")


def is_decayed(name: str, weight: Tensor) -> bool:
    return weight.ndim > 1 and not name.endswith(".bias") and name not in TOKENS


@dataclass
class Moments:
    """Adam's two moments of every weight of a model, and its direction with both bias corrections."""

    model: nn.Module
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    max_grad_norm: float | None
    steps: int = 0
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.steps += 1
        weights = dict(self.model.named_parameters())
        norm = math.sqrt(sum(float(weight.grad.double().pow(2).sum()) for weight in weights.values()))
        divisor = 1.0
        if self.max_grad_norm is not None and norm > self.max_grad_norm:
            divisor = norm / self.max_grad_norm
        for name, weight in weights.items():
            self.move(name, weight, self.direction(name, weight.grad / divisor), lr)

    def direction(self, name: str, grad: Tensor) -> Tensor:
        beta1, beta2 = self.betas
        first = beta1 * self.first.get(name, torch.zeros_like(grad)) + (1 - beta1) * grad
        second = beta2 * self.second.get(name, torch.zeros_like(grad)) + (1 - beta2) * grad * grad
        self.first[name], self.second[name] = first, second
        return (first / (1 - beta1**self.steps)) / ((second / (1 - beta2**self.steps)).sqrt() + self.eps)

    def move(self, name: str, weight: Tensor, direction: Tensor, lr: float) -> None:
        raise NotImplementedError


class Lamb(Moments):
    def move(self, name: str, weight: Tensor, direction: Tensor, lr: float) -> None:
        if is_decayed(name, weight) and self.weight_decay:
            direction = direction + self.weight_decay * weight
            lr = lr * trust_ratio(weight, direction)
        weight -= lr * direction


class AdamW(Moments):
    def move(self, name: str, weight: Tensor, direction: Tensor, lr: float) -> None:
        if is_decayed(name, weight):
            weight *= 1 - lr * self.weight_decay
        weight -= lr * direction


def trust_ratio(weight: Tensor, update: Tensor) -> float:
    weight_norm, update_norm = float(weight.norm()), float(update.norm())
    return weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0
