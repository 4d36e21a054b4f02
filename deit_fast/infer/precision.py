"""The forward pass in use: from uint8 images to fp32 logits, under the recipe's autocast."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import Run
from deit_fast.runtime.errors import RecipeError
from deit_fast.runtime.hardware import has_bf16
from deit_fast.runtime.world import World

_PIECE = 2**18  # values: as fp32 they fill half of the L2 cache of a server's core


def choose_dtype(run: Run, device: torch.device) -> torch.dtype:
    """Type of the forward pass: bf16 where the hardware has it, else fp32.

    Raises RecipeError for bf16 without hardware.
    """
    if run.precision == "bf16" and not has_bf16(device):
        raise RecipeError(f"run.precision='bf16': expected 'fp32' or 'auto', this {device.type} device has no bf16")
    wants = run.precision == "bf16" or (run.precision == "auto" and has_bf16(device))
    return torch.bfloat16 if wants else torch.float32


class Classifier(nn.Module):
    """A model from uint8 images to fp32 logits: normalisation and autocast are part of the compiled region."""

    def __init__(self, model: nn.Module, recipe: Recipe, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        # These constants are no buffers, because DDP would broadcast buffers in every step.
        self.mean = 255.0 * torch.tensor(recipe.data.mean, device=device).view(1, 3, 1, 1)
        self.scale = (1 / 255.0) / torch.tensor(recipe.data.std, device=device).view(1, 3, 1, 1)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> fp32, normalised by the recipe's data.mean and data.std."""
        if torch.compiler.is_compiling() or not images.is_contiguous(memory_format=torch.channels_last):
            return (images.float() - self.mean) * self.scale
        # The same over whole rows, because vectors of three channels are too short, and in pieces that stay in a core's
        # cache from one operation to the next. On a CPU this takes a tenth of the time.
        rows = images.permute(0, 2, 3, 1).flatten(2)  # B S 3S
        mean, scale = (each.flatten().repeat(images.shape[3]) for each in (self.mean, self.scale))
        normalised = torch.empty(rows.shape, device=images.device)
        count = len(rows) if images.is_cuda else max(1, _PIECE // rows[0].numel())
        for to, piece in zip(normalised.split(count), rows.split(count), strict=True):
            to.copy_(piece).sub_(mean).mul_(scale)
        return normalised.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, K] of normalised images [B, 3, S, S]."""
        return self.run(self.model, images).float()

    def head_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] of the class token's and the distillation token's head, for a model that trains both."""
        classes, distilled = self.run(self.model, images)
        return classes.float(), distilled.float()

    def run(self, model: nn.Module, images: Tensor) -> Any:
        """The result of `model` for normalised images, fp32 [B, 3, S, S], under autocast to the run's type.

        For a classifier the result is logits [B, K] in the run's type.
        """
        with self.attention(), torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return model(images)

    def attention(self) -> contextlib.AbstractContextManager[None]:
        """Selects the kernels of attention; used for the backward pass too, which may recompute a block."""
        # On CPUs the backward of fused attention in bf16 is slow: 22 ms against 5 ms for 64 x 4 heads of 37 tokens.
        plain = self.mean.device.type == "cpu" and self.dtype == torch.bfloat16
        return sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of uint8 images [B, 3, S, S]."""
        return self.logits(self.normalise(images))


def build_predictor(model: nn.Module, recipe: Recipe, dtype: torch.dtype, world: World) -> Callable[[Tensor], Tensor]:
    """uint8 images [B, 3, S, S] -> fp32 logits [B, K] with `model`'s weights.

    The function is compiled if the recipe's training step is.
    """
    from deit_fast.infer.compile import CompiledPredictor  # which imports all models: normalising alone needs none

    return CompiledPredictor(Classifier(model, recipe, dtype, world.device), recipe.run, world)


def average_mirrored(predict: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`predict` (images [B, 3, S, S] -> logits [B, K]), averaged over the logits of an image and its mirror image."""
    return lambda images: (predict(images) + predict(images.flip(3))) / 2


def mirrored_notes(recipe: Recipe, flip: bool) -> list[str]:
    """A line if mirror images are averaged for a model trained without them: a mirrored digit is another character."""
    if not flip or recipe.augment.flip:
        return []
    return ["--flip averages mirror images, which this model was trained without (augment.flip=0): expect lower scores"]


def describe_attention(device: torch.device, dtype: torch.dtype) -> str:
    """The attention kernels that torch may choose from in training."""
    if device.type == "cpu":
        return "unfused" if dtype == torch.bfloat16 else "fused"
    cuda = torch.backends.cuda
    found = {"cuDNN": cuda.cudnn_sdp_enabled(), "flash": cuda.flash_sdp_enabled(),
             "memory-efficient": cuda.mem_efficient_sdp_enabled()}  # fmt: skip
    return " or ".join(name for name, enabled in found.items() if enabled) or "unfused"
