"""LAMB in float64, one tensor at a time, written from the description of apex FusedLAMB: slow and obvious."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass
class OracleLamb:
    """Parameters and moments of some tensors; `decays[i]` is tensor i's weight decay."""

    params: list[np.ndarray]
    decays: list[float]
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    steps: int = 0
    first: list[np.ndarray] = field(default_factory=list)
    second: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.params = [p.astype(np.float64) for p in self.params]
        self.first = [np.zeros_like(p) for p in self.params]
        self.second = [np.zeros_like(p) for p in self.params]

    def step(self, grads: list[np.ndarray]) -> None:
        self.steps += 1
        beta1, beta2 = self.betas
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads))
        divisor = norm / self.max_grad_norm if norm > self.max_grad_norm else 1.0
        for i, grad in enumerate(grads):
            g = grad.astype(np.float64) / divisor
            self.first[i] = beta1 * self.first[i] + (1 - beta1) * g
            self.second[i] = beta2 * self.second[i] + (1 - beta2) * g * g
            m = self.first[i] / (1 - beta1**self.steps)
            v = self.second[i] / (1 - beta2**self.steps)
            update = m / (np.sqrt(v) + self.eps) + self.decays[i] * self.params[i]
            ratio = 1.0
            if self.decays[i] != 0:
                weight_norm, update_norm = np.linalg.norm(self.params[i]), np.linalg.norm(update)
                if weight_norm > 0 and update_norm > 0:
                    ratio = weight_norm / update_norm
            self.params[i] = self.params[i] - self.lr * ratio * update


def assert_converges(build: Callable[..., Any], size: int, steps: int, device: str = "cpu", **options: Any) -> None:
    """An optimizer from `build` fits a line to `size` points, and reduces the loss to a hundredth."""
    torch.manual_seed(0)
    inputs, truth = torch.randn(size, 10, device=device), torch.randn(10, 1, device=device)
    model = nn.Linear(10, 1).to(device)
    optimizer = build(model.parameters(), lr=2e-2, weight_decay=1e-4, **options)
    losses = []
    for _ in range(steps):
        loss = ((model(inputs) - inputs @ truth) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]
