"""What happens per batch: normalise, mix, forward, loss, backward, update, moving average. No host synchronisation."""

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from deit_fast.data.erase import erase
from deit_fast.data.mix import mix_images, mix_targets
from deit_fast.distributed import World, has_bf16
from deit_fast.errors import RecipeError
from deit_fast.losses import compute_loss
from deit_fast.optim.build import RecipeOptimizer, build_optimizer, set_learning_rate
from deit_fast.recipe import Recipe
from deit_fast.sections import Run


def choose_dtype(run: Run, device: torch.device) -> torch.dtype:
    """Type of the forward pass: bf16 where the hardware has it, else fp32. Raises RecipeError for bf16 it lacks."""
    if run.precision == "bf16" and not has_bf16(device):
        raise RecipeError(f"run.precision='bf16': expected 'fp32' or 'auto', this {device.type} device has no bf16")
    wants = run.precision == "bf16" or (run.precision == "auto" and has_bf16(device))
    return torch.bfloat16 if wants else torch.float32


def wants_compile(run: Run, device: torch.device) -> bool:
    return run.compile == "on" or (run.compile == "auto" and device.type == "cuda")


class Mixing(NamedTuple):
    """Draws of mixup and CutMix for a batch, on the device."""

    lam: Tensor  # B, share of the image itself
    box: Tensor  # B 4, top, left, bottom, right of what CutMix pastes
    cutmix: Tensor  # B bool


class Erasing(NamedTuple):
    """Draws of random erasing for a batch, on the device."""

    boxes: Tensor  # B n 4, top, left, bottom, right
    keys: Tensor  # B 2, of the noise


class MicroBatch(NamedTuple):
    """What one forward-backward pass takes."""

    images: Tensor  # B 3 S S uint8, channels-last
    labels: Tensor  # B
    mixing: Mixing | None
    erasing: Erasing | None = None


class Classifier(nn.Module):
    """A model from uint8 images to fp32 logits: normalisation and autocast belong to the compiled region."""

    def __init__(self, model: nn.Module, recipe: Recipe, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        # Constants beside the weights, no buffers: DDP would send buffers around at every step.
        self.mean = 255.0 * torch.tensor(recipe.data.mean, device=device).view(1, 3, 1, 1)
        self.scale = (1 / 255.0) / torch.tensor(recipe.data.std, device=device).view(1, 3, 1, 1)

    def normalise(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) * self.scale

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, K] of normalised images [B, 3, S, S]."""
        # On CPUs the fused attention's bf16 backward is slow: 22 ms against 5 ms for 64 x 4 heads of 37 tokens.
        plain = images.device.type == "cpu" and self.dtype == torch.bfloat16
        attention = sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext()
        with attention, torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(images).float()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of uint8 images [B, 3, S, S]."""
        return self.logits(self.normalise(images))


def build_predictor(
    model: nn.Module, recipe: Recipe, dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """uint8 images -> logits with `model`'s weights, compiled where the recipe's training step is."""
    classifier = Classifier(model, recipe, dtype, device)
    return torch.compile(classifier) if wants_compile(recipe.run, device) else classifier


class Objective(nn.Module):
    """The training loss of one batch, [] fp32: one region for torch.compile, and the module that DDP wraps."""

    def __init__(self, classifier: Classifier, recipe: Recipe) -> None:
        super().__init__()
        self.classifier = classifier
        self.recipe = recipe

    def forward(self, images: Tensor, labels: Tensor, mixing: Mixing | None, erasing: Erasing | None = None) -> Tensor:
        inputs = self.classifier.normalise(images)
        if erasing is not None:
            inputs = erase(inputs, *erasing, self.recipe.augment.erase_mode)
        if mixing is not None:
            inputs = mix_images(inputs, *mixing)
        logits = self.classifier.logits(inputs)
        smoothing = self.recipe.loss.smoothing
        targets = mix_targets(labels, logits.shape[1], smoothing, None if mixing is None else mixing.lam)
        return compute_loss(self.recipe.loss, logits, targets)


@dataclass
class Meter:
    """Sums since the last log, on the device: losses, gradient norms and counts are read back only then."""

    sums: Tensor  # loss, gradient norm, steps that counted, skipped steps
    skipped_in_a_row: Tensor

    def add(self, loss: Tensor, grad_norm: Tensor, skipped: Tensor) -> None:
        counted = skipped == 0
        values = torch.stack([loss, grad_norm, counted.to(loss.dtype)])
        self.sums += torch.cat([torch.where(counted, values, 0.0), skipped[None]])
        self.skipped_in_a_row.add_(1).mul_(skipped)


@dataclass
class TrainState:
    """All that a resumed run needs; the position in the data follows from the step."""

    PLAIN: ClassVar = ("step", "skipped", "seconds", "timed_steps", "timed_seconds", "best_top1", "scores")

    model: VisionTransformer
    ema: VisionTransformer | None
    optimizer: RecipeOptimizer
    step: int = 0
    skipped: int = 0
    seconds: float = 0.0
    timed_steps: int = 0
    timed_seconds: float = 0.0
    best_top1: float = -1.0
    scores: dict[str, float] = field(default_factory=dict)

    def add_window(self, steps: int, seconds: float, is_first: bool) -> None:
        """Adds the wall time of some steps; a process's first window, with its warm-up, does not count for speed."""
        self.seconds += seconds
        if not is_first:
            self.timed_steps += steps
            self.timed_seconds += seconds

    @property
    def steps_per_second(self) -> float:
        if self.timed_steps:
            return self.timed_steps / self.timed_seconds
        return self.step / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{key: getattr(self, key) for key in self.PLAIN},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        for key in self.PLAIN:
            setattr(self, key, state[key])


def build_state(recipe: Recipe, model: VisionTransformer) -> TrainState:
    """Optimizer and moving average for a model that is on its device with its initial weights."""
    ema = None
    if recipe.optim.ema_decay is not None:
        ema = copy.deepcopy(model).requires_grad_(False).eval()
    return TrainState(model, ema, build_optimizer(recipe.optim, model, ema))


class TrainStep:
    """One optimizer step over `run.accumulation` batches; every process calls it with its own part of the batch."""

    def __init__(self, recipe: Recipe, state: TrainState, world: World, dtype: torch.dtype) -> None:
        self.recipe, self.state, self.world = recipe, state, world
        self.classifier = Classifier(state.model, recipe, dtype, world.device)
        objective: nn.Module = Objective(self.classifier, recipe)
        if wants_compile(recipe.run, world.device):
            objective = cast(nn.Module, torch.compile(objective))
        # One compiled region inside DDP: no graph breaks at the buckets, but all gradients arrive together at its end.
        self.ddp = None
        if world.size > 1:
            self.ddp = DistributedDataParallel(
                objective,
                gradient_as_bucket_view=True,
                static_graph=recipe.run.accumulation == 1,  # a static graph does not allow no_sync
            )
        self.objective = objective if self.ddp is None else self.ddp
        self.meter = Meter(torch.zeros(4, device=world.device), torch.zeros((), device=world.device))

    def __call__(self, batches: Sequence[MicroBatch], lr: float) -> None:
        state = self.state
        # Dropout and stochastic depth are a function of (seed, step, rank): a resumed run draws what it would have.
        seed = np.random.SeedSequence((self.recipe.run.seed, state.step, self.world.rank)).generate_state(1)[0]
        torch.manual_seed(int(seed))
        state.model.train()
        set_learning_rate(state.optimizer, lr)
        total = torch.zeros((), device=self.world.device)
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with contextlib.nullcontext() if last or self.ddp is None else self.ddp.no_sync():
                loss = self.objective(*batch) / len(batches)
                loss.backward()
            total += loss.detach()
        state.optimizer.step()  # moves state.ema as well
        state.optimizer.zero_grad(set_to_none=True)
        self.meter.add(total, state.optimizer.grad_norm, state.optimizer.skipped)
        state.step += 1

    def predictor(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """`build_predictor` in the type and on the device of the training step."""
        return build_predictor(model, self.recipe, self.classifier.dtype, self.world.device)
