"""The two systems that are compared, deit_fast's step and the plain reference, set up alike from one recipe."""

import re

import numpy as np
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from deit_fast.data.loader.batches import Batch
from deit_fast.data.loader.order import FullOrder
from deit_fast.data.loader.sampler import build_samplers
from deit_fast.models.build import build_model
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.world import World
from deit_fast.training.objective import BatchBuilder, MicroBatch
from deit_fast.training.prepare import build_state, prepare
from deit_fast.training.schedule import learning_rate
from deit_fast.zoo import find_architecture
from tests.oracles.reference.mixing import Draw
from tests.oracles.reference.optimizers import AdamW, Lamb
from tests.oracles.reference.training import GpuBatch, Reference, Settings
from tests.oracles.reference.vit import VisionTransformer

# A ViT of 4 blocks of width 128 with 17 tokens. Values that the demo's recipe changes are set back to the reference's.
WORDS = (
    "model.name=deit3_nano_patch8", "model.image_size=32", "model.num_classes=10", "model.layer_scale=auto",
    "data.repeats=1", "mix.mixup=0.8", "mix.cutmix=1.0", "mix.group=16", "loss.name=bce", "optim.lr=4e-3",
    "optim.ema_decay=0.9", "run.global_batch=16", "run.precision=fp32", "run.compile=off",
    "schedule.epochs=10", "schedule.warmup_epochs=2",
)  # fmt: skip
STEPS_PER_EPOCH = 2
STEPS = 20
CPU = World(0, 1, torch.device("cpu"))


class Ours:
    """deit_fast's own step, optimizer, mixing draws and schedule on given images [STEPS, B, 3, S, S]."""

    def __init__(self, words: tuple[str, ...], images: Tensor, labels: Tensor) -> None:
        recipe = self.recipe = get_recipe("demo_pretrain", [*WORDS, *words])
        self.images, self.labels = images, labels
        order = FullOrder(STEPS_PER_EPOCH * recipe.run.global_batch, recipe.run.seed)
        self.samplers = build_samplers(recipe, order, 0, 1)
        torch.manual_seed(1)
        model = build_model(recipe.model)
        with torch.no_grad():  # away from zeros and ones, which would hide mistakes
            for name, weight in model.named_parameters():
                if name.endswith(".bias") or "norm" in name:
                    weight += 0.02 * torch.randn_like(weight)
        self.step = prepare(recipe, build_state(recipe, model), CPU, torch.float32)
        self.masks: list[Tensor] = []
        for module in model.modules():
            if isinstance(module, DropPath):
                module.register_forward_hook(self._note_mask)

    def _note_mask(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.masks.append((output.detach().flatten(1).abs().amax(1) > 0).float())

    def rate(self, step: int) -> float:
        return learning_rate(self.recipe.schedule, self.recipe.optim.lr, step, STEPS_PER_EPOCH)

    def batches(self, step: int) -> list[MicroBatch]:
        """The passes of a step, with their mixing draws, each image at its place in the global batch."""
        passes = []
        for sampler in self.samplers:
            places = sampler.batch(step).positions
            images = self.images[step][places].contiguous(memory_format=torch.channels_last)
            labels = self.labels[step][places]
            batch = Batch(images, labels, places, places, step // STEPS_PER_EPOCH, step, len(places))
            passes.append(BatchBuilder(self.recipe, CPU.device)(batch))
        return passes

    def train(self, step: int) -> float:
        """Runs one step; returns its loss."""
        self.masks.clear()
        self.step(self.batches(step), self.rate(step))
        loss, _, counted, skipped = self.step.meter.sums.tolist()
        assert (counted, skipped) == (1, 0)
        self.step.meter.sums.zero_()
        return loss

    def gpus(self, step: int) -> list[GpuBatch]:
        """The same step as the reference's GPUs would hold it: one mixing group per GPU, paired by reversal."""
        size, group = self.recipe.run.global_batch, self.recipe.mix.group
        draws = {
            int(place): (bool(cutmix), float(lam), tuple(box.tolist()))
            for passed, sampler in zip(self.batches(step), self.samplers, strict=True)
            if passed.mixing is not None
            for place, lam, box, cutmix in zip(sampler.batch(step).positions, *passed.mixing, strict=True)
        }
        batches = []
        for first in range(0, size // 2, group // 2):
            ahead = list(range(first, min(first + group // 2, size // 2)))
            places = ahead + [size - 1 - place for place in reversed(ahead)]
            drawn = {draws[place] for place in places if draws}
            assert len(drawn) <= 1, "a mixing group shares one draw"
            draw = Draw(*drawn.pop()) if drawn else None
            batches.append(GpuBatch(self.images[step][places].contiguous(), self.labels[step][places], draw))
        return batches


def reference_of(recipe: Recipe, model: nn.Module) -> Reference:
    """The plain system with the settings of `recipe` and the weights of `model`, transferred by name."""
    section, shape = recipe.model, find_architecture(recipe.model.name)
    plain = VisionTransformer(
        section.image_size, shape.patch_size, shape.embed_dim, shape.depth, shape.num_heads, section.classes,
        section.initial_layer_scale, section.drop_path,
    )  # fmt: skip
    plain.load_state_dict(renamed(model))
    settings = Settings(
        bce=recipe.loss.name == "bce",
        smoothing=recipe.loss.smoothing,
        optimizer=Lamb if recipe.optim.name == "lamb" else AdamW,
        weight_decay=recipe.optim.weight_decay,
        max_grad_norm=recipe.optim.max_grad_norm,
        ema_decay=recipe.optim.ema_decay,
    )
    return Reference(plain, settings)


def renamed(model: nn.Module) -> dict[str, Tensor]:
    """deit_fast's weights with the reference's names."""
    return {re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): value.clone() for name, value in model.state_dict().items()}


def random_batches(size: int = 16, classes: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """uint8 images [STEPS, size, 3, 32, 32] whose colour tells the class, labels [STEPS, size]."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=(STEPS, size))
    colours = random.integers(40, 216, (classes, 3, 1, 1))
    noise = random.integers(-40, 40, (STEPS, size, 3, 32, 32))
    return torch.from_numpy((colours[labels] + noise).astype(np.uint8)), torch.from_numpy(labels)
