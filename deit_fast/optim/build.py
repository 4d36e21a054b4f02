"""Optimizers from a recipe: which parameters decay, and one interface for LAMB and AdamW."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from deit_fast.optim.average import WeightAverage
from deit_fast.optim.lamb import Lamb
from deit_fast.sections import Optim

UNDECAYED = ("pos_embed", "cls_token", "dist_token", "reg_token", "alpha", "beta")  # the last are ResMLP's norms


class ClippedAdamW(torch.optim.AdamW):
    """torch's fused AdamW with Lamb's interface: clips, averages, reports `grad_norm`, skips where it is not finite."""

    def __init__(
        self,
        params: Iterable[Any],
        max_grad_norm: float | None,
        average: WeightAverage | None = None,
        **options: Any,
    ) -> None:
        super().__init__(params, fused=True, **options)
        self.max_grad_norm = max_grad_norm
        self.average = average
        self.grad_norm: Tensor = torch.zeros(())
        self.skipped: Tensor = torch.zeros(())

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.grad_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        # The fused kernel's own switch, meant for a GradScaler: 1 leaves parameters, moments and step as they were.
        self.found_inf = self.skipped = 1.0 - torch.isfinite(self.grad_norm).to(torch.float32)
        if self.max_grad_norm is not None:
            torch._foreach_mul_(grads, (self.max_grad_norm / self.grad_norm).nan_to_num(1.0).clamp(max=1.0))
        loss = super().step(closure)
        if self.average is not None:
            self.average.update(self.average.weights, self.skipped)
        return loss


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters in two groups: without decay (1-D tensors, biases, tokens, position embedding), and with.

    facebookresearch/deit through timm's add_weight_decay, except that the distillation token, which it decays by an
    oversight, is with the other tokens.
    """
    still: list[Tensor] = []
    decayed: list[Tensor] = []
    for name, param in model.named_parameters():
        if param.requires_grad:
            plain = param.ndim <= 1 or name.endswith(".bias") or name.rsplit(".", 1)[-1] in UNDECAYED
            (still if plain else decayed).append(param)
    return [{"params": still, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def build_optimizer(section: Optim, model: nn.Module, ema: nn.Module | None = None) -> Lamb | ClippedAdamW:
    """The recipe's optimizer, which also moves `ema`, a copy of the model, by section.ema_decay.

    Its learning rate is a tensor on the model's device: changing it recompiles nothing.
    """
    groups = [group for group in parameter_groups(model, section.weight_decay) if group["params"]]
    lr = torch.tensor(section.lr, device=next(model.parameters()).device)
    kind = Lamb if section.name == "lamb" else ClippedAdamW
    average = None
    if ema is not None:
        assert section.ema_decay is not None
        average = WeightAverage(model.parameters(), ema.parameters(), section.ema_decay)
    return kind(
        groups, lr=lr, betas=section.betas, eps=section.eps, max_grad_norm=section.max_grad_norm, average=average
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"].fill_(lr)
