"""The teacher of distillation: any model of timm, with weights from a file."""

from dataclasses import dataclass
from pathlib import Path

import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from deit_fast.convert.formats.lazy_tensor import BadFileError, check_finite
from deit_fast.models import timm
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import RecipeError, RunError, one_line, suggest


@dataclass(frozen=True)
class Teacher:
    """A frozen model in evaluation mode.

    It is no nn.Module, so that DDP, optimizer and checkpoints do not include it.
    """

    model: nn.Module


def load_teacher(recipe: Recipe, path: Path, device: torch.device) -> Teacher:
    """The model distill.teacher with the weights of a .pth, .pt or .safetensors file, on the device.

    The teacher gets the student's images unchanged, so it has to take S x S images and know the same K classes. From a
    training checkpoint the weights are taken, not their moving average. Raises RecipeError for a model that timm does
    not have or that does not take the images, RunError for a file that does not fit it; one line each.
    """
    section, num_classes, image_size = recipe.distill, recipe.model.classes, recipe.model.image_size
    if not timm.is_model(section.teacher):
        raise RecipeError(
            f"distill.teacher={section.teacher!r}: expected a model of timm"
            f"{suggest(section.teacher, timm.list_models())}"
        )
    model = timm.create_model(section.teacher, num_classes=num_classes).requires_grad_(False).eval()
    tensors = _read(path)
    for name in _classifier_names(model):
        weight = tensors.get(f"{name}.weight")
        if isinstance(weight, Tensor) and len(weight) != num_classes:
            raise RunError(f"--teacher {path}: knows {len(weight)} classes, expected {num_classes}, the student's")
    try:
        model.load_state_dict(tensors)
    except Exception as error:  # RuntimeError lists the mismatches; other kinds are for values that are no tensors
        reason = one_line(error)[:200]
        raise RunError(f"--teacher {path}: expected weights of timm's {section.teacher} ({reason})") from None
    try:
        check_finite(model.state_dict())
    except BadFileError as error:
        raise RunError(f"--teacher {path}: {error}") from None
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # a model may raise anything for a size that it was not built for
        raise RecipeError(
            f"distill.teacher={section.teacher!r}: expected a model that takes images of "
            f"model.image_size={image_size} ({one_line(error)[:200]})"
        ) from None
    if not logits.isfinite().all():
        raise RunError(f"--teacher {path}: its logits of a black image are not finite: expected useful weights")
    if logits.shape != (1, num_classes):
        raise RecipeError(f"distill.teacher={section.teacher!r}: expected a classifier, its output is no [B, K]")
    return Teacher(model.to(device).to(memory_format=torch.channels_last))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():  # else timm would log its own line
        raise RunError(f"--teacher {path}: no such file")
    try:
        return load_state_dict(str(path), use_ema=False, device="cpu", weights_only=True)
    except Exception as error:  # timm, torch and safetensors raise many kinds for a damaged or foreign file
        raise RunError(f"--teacher {path}: expected a file of weights ({one_line(error)[:200]})") from None


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)
