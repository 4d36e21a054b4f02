"""Builds optimizers from a recipe: which weights train, which decay, and the learning rate of each depth."""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from deit_fast.optim.base import RecipeOptimizer, Setup, WeightAverage
from deit_fast.optim.sharding import Shards, local
from deit_fast.recipe.sections import Optim

UNDECAYED = ("pos_embed", "cls_token", "dist_token", "reg_token")
HEAD = ("head.weight", "head.bias")
TRAINED_WITH_ATTENTION = (*HEAD, "pos_embed")


def freeze(model: nn.Module, section: Optim) -> None:
    """Freezes the weights that section.trainable excludes; weights that are frozen already stay frozen.

    "attention" trains attention, head and position embedding (arXiv:2203.09795, section 4; facebookresearch/deit
    main.py --attn-only). "head" trains the head alone. Both freeze the distillation head, as the reference does.
    """
    if section.trainable == "all":
        return
    for name, param in model.named_parameters():
        in_attention = section.trainable == "attention" and (".attn." in name or name in TRAINED_WITH_ATTENTION)
        if not in_attention and name not in HEAD:
            param.requires_grad_(False)


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float | None = None) -> list[dict[str, Any]]:
    """Trained parameters as optimizer groups: "params", "lr_scale" and "weight_decay", in the order of the last two.

    Vectors (ResMLP's norms are [1, 1, D]), biases, tokens and the position embedding have no weight decay. This matches
    facebookresearch/deit, which uses timm's add_weight_decay, with one exception: the reference decays the distillation
    token by an oversight, here it is treated like the other tokens. With layer_decay, lr_scale shrinks as in timm's
    param_groups_layer_decay.
    """
    scales = _layer_scales(model, layer_decay)
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, param in model.named_parameters():
        if param.requires_grad:
            vector = param.ndim <= 1 or (param.ndim == 3 and param.numel() == param.shape[2])
            plain = vector or name.endswith(".bias") or name.rsplit(".", 1)[-1] in UNDECAYED
            groups.setdefault((scales[name], 0.0 if plain else weight_decay), []).append(param)
    return [
        {"params": params, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), params in sorted(groups.items(), key=lambda group: group[0])
    ]


def _layer_scales(model: nn.Module, layer_decay: float | None) -> dict[str, float]:
    """Fraction of the learning rate for each parameter: layer_decay to the power of its distance from the head.

    The order of the layers is timm's: embeddings, one layer per block, head; the final norm belongs to the last block.
    """
    if layer_decay is None:
        return {name: 1.0 for name, _ in model.named_parameters()}
    matcher: Any = model.group_matcher  # timm's; recipes for models without it are refused
    layers: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    head = max(layers.values())
    return {name: layer_decay ** (head - layer) for name, layer in layers.items()}


def build_optimizer(
    section: Optim,
    model: nn.Module,
    ema: nn.Module | None = None,
    shards: Shards | None = None,
    copies: Mapping[Tensor, Tensor] = MappingProxyType({}),
) -> RecipeOptimizer:
    """The recipe's optimizer, which also updates `ema`, a copy of the model, with section.ema_decay. Freezes the rest.

    The learning rate of each group is a tensor [] on the model's device, which the training step fills: a new value
    causes no recompilation. A group's `lr_scale` is its fraction of the head's rate. If the model is sharded, the
    optimizer updates its `shards`. copies: as in Lamb, which alone uses them. Raises RecipeError where the model lacks
    a part that the section needs.
    """
    freeze(model, section)
    groups = parameter_groups(model, section.weight_decay, section.layer_decay)
    device = next(model.parameters()).device
    own: Callable[[Tensor], Tensor] = (lambda param: param) if shards is None else shards.leaf
    for group in groups:
        group["lr"] = torch.tensor(section.lr * group["lr_scale"], device=device)
        group["params"] = [own(param) for param in group["params"]]
    average = None
    if ema is not None:
        assert section.ema_decay is not None
        # A frozen weight always equals its average.
        pairs = [pair for pair in zip(model.parameters(), ema.parameters(), strict=True) if pair[0].requires_grad]
        average = WeightAverage([own(weight) for weight, _ in pairs], [local(mean) for _, mean in pairs],
                                section.ema_decay)  # fmt: skip
    options = {"lr": section.lr, "max_grad_norm": section.max_grad_norm, "average": average,
               "add_up": None if shards is None else shards.add_up}  # fmt: skip
    # Only the module with the name of the recipe's optimizer is imported.
    module = import_module(f"deit_fast.optim.{section.name}")
    optimizer: RecipeOptimizer = module.build(section, Setup(groups, options, model, own, shards, copies))
    if shards is not None:
        optimizer.register_step_pre_hook(lambda *_: shards.take_gradients())
    return optimizer
