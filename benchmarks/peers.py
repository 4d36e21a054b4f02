"""The tools in use today, rebuilt from parts of timm and torch: engines R and T. R's image loader is in pil.py.

R follows facebookresearch/deit (engine.py, main.py). T follows timm 1.0.31's train.py with --amp --amp-dtype bfloat16
--torchcompile --opt lamb --channels-last --model-ema. Choices favour the peer: R gets normalised images, since its
workers normalise; T gets mixed images, since its collate function mixes, and never reads its loss back.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.optim import Lamb
from timm.task import ClassificationTask
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from deit_fast.data.augment.mix import mix_images
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import Data, LambOptim, Loss, Optim
from deit_fast.runtime.errors import RecipeError
from deit_fast.training.objective import MicroBatch
from deit_fast.zoo import find_architecture, find_family

PLAIN = {
    "model.drop_path_decay": "constant",
    "model.position": "learned",
    "model.pool": "token",
    "model.stem": "patch",
    "model.activation": "gelu",
    "model.train_mode": True,
    "mix.mode": "batch",
    "loss.cosub": False,
    "distill.kind": "none",
    "optim.name": "lamb",
    "optim.layer_decay": None,
    "optim.trainable": "all",
    "optim.split_qkv": False,
    "run.accumulation": 1,
    "augment.erase": 0.0,
}
"""The peers' values for settings that are a choice in recipes."""


def plain_model(recipe: Recipe, weights: dict[str, Tensor] | None = None, fused_attention: bool = True) -> nn.Module:
    """timm's own vision transformer with the recipe's sizes and rates: Bernoulli DropPath, LayerScale as one op.

    Raises RecipeError for an unknown model, for one with more parts than timm's plain one, and for a recipe with
    settings that the peers do not have.
    """
    section, architecture = recipe.model, find_architecture(recipe.model.name)
    family = find_family(section.name)
    for key, only in PLAIN.items():
        name, _, field = key.partition(".")
        value = recipe.run.passes if key == "run.accumulation" else getattr(getattr(recipe, name), field)
        if value != only:
            raise RecipeError(f"{key}={value!r}: expected {only!r}, the peers know no other")
    if not family.is_vit or architecture.distilled or architecture.parallel > 1:
        raise RecipeError(f"model.name={section.name!r}: expected a plain DeiT or DeiT III, which the peers can train")
    model = VisionTransformer(
        img_size=section.image_size,
        patch_size=architecture.patch_size,
        embed_dim=architecture.embed_dim,
        depth=architecture.depth,
        num_heads=architecture.num_heads,
        num_classes=section.classes,
        no_embed_class=not family.class_slot,
        init_values=section.initial_layer_scale,
        drop_rate=section.dropout,
    )
    for block in model.blocks:
        block.attn.fused_attn = fused_attention  # type: ignore[union-attr]
        if section.drop_path:
            block.drop_path1, block.drop_path2 = DropPath(section.drop_path), DropPath(section.drop_path)
    if weights is not None:
        model.load_state_dict(weights)
    return model


def timm_lamb(model: nn.Module, section: Optim) -> Lamb:
    """timm's Lamb with its usual groups: no decay on vectors, tokens and position embedding."""
    assert isinstance(section, LambOptim)
    still: list[Tensor] = []
    decayed: list[Tensor] = []
    for name, param in model.named_parameters():
        plain = param.ndim <= 1 or name in ("pos_embed", "cls_token")
        (still if plain else decayed).append(param)
    return Lamb(
        [{"params": still, "weight_decay": 0.0}, {"params": decayed, "weight_decay": section.weight_decay}],
        lr=section.lr,
        betas=section.betas,
        eps=section.eps,
        max_grad_norm=section.max_grad_norm,
    )


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _soft_targets(labels: Tensor, lam: float, smoothing: float, num_classes: int) -> Tensor:
    off = smoothing / num_classes
    one_hot = torch.full((len(labels), num_classes), off, device=labels.device)
    one_hot.scatter_(1, labels[:, None], 1.0 - smoothing + off)
    return one_hot * lam + one_hot.flip(0) * (1.0 - lam)


@dataclass
class ReferenceBatch:
    """A batch as R's loader returns it, with one draw of mixup or CutMix for the whole batch."""

    images: Tensor  # fp32 [B, 3, S, S], normalised
    labels: Tensor  # [B]
    lam: float = 1.0
    box: tuple[int, ...] = (0, 0, 0, 0)
    cutmix: bool = False

    @classmethod
    def of(cls, batch: MicroBatch, data: Data) -> "ReferenceBatch":
        mean, std = (torch.tensor(each, device=batch.images.device).view(1, 3, 1, 1) for each in (data.mean, data.std))
        made = cls(((batch.images.float() / 255 - mean) / std).contiguous(), batch.labels)
        if batch.mixing is not None:  # one draw, because workload.find_recipe sets mix.group to the batch
            made.lam, made.cutmix = float(batch.mixing.lam[0]), bool(batch.mixing.cutmix[0])
            made.box = tuple(batch.mixing.box[0].tolist())
        return made


class ReferenceEngine:
    """R: eager, fp16 autocast and GradScaler (fp32 on CPUs), explicit softmax attention, a host wait each step."""

    def __init__(self, recipe: Recipe, device: torch.device, weights: dict[str, Tensor] | None = None) -> None:
        self.recipe, self.device = recipe, device
        self.model = plain_model(recipe, weights, fused_attention=False).to(device)
        self.optimizer = timm_lamb(self.model, recipe.optim)
        self.ema = None
        if recipe.optim.ema_decay is not None:
            self.ema = ModelEmaV3(self.model, decay=recipe.optim.ema_decay, foreach=False)
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
        bce = recipe.loss.name == "bce"
        self.criterion: nn.Module = nn.BCEWithLogitsLoss() if bce else SoftTargetCrossEntropy()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda")

    def _mixed(self, batch: ReferenceBatch) -> Tensor:
        if batch.lam == 1.0:
            return batch.images
        partner = batch.images.flip(0)
        if not batch.cutmix:
            return batch.images * batch.lam + partner * (1.0 - batch.lam)
        top, left, bottom, right = batch.box
        images = batch.images.clone()
        images[:, :, top:bottom, left:right] = partner[:, :, top:bottom, left:right]
        return images

    def __call__(self, batch: ReferenceBatch, lr: float) -> float:
        """One step; returns its loss, which the reference reads back in every step."""
        self.model.train()
        _set_lr(self.optimizer, lr)
        images = self._mixed(batch)
        recipe = self.recipe
        targets = _soft_targets(batch.labels, batch.lam, recipe.loss.smoothing, recipe.model.classes)
        if recipe.loss.name == "bce":
            targets = targets.gt(0.0).type(targets.dtype)
        with self._autocast():
            loss = self.criterion(self.model(images), targets)
        value = loss.item()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        if self.ema is not None:
            self.ema.update(self.model)
        return value

    @torch.no_grad()
    def predict(self, batch: ReferenceBatch) -> Tensor:
        self.model.eval()
        with self._autocast():
            return self.model(batch.images)


class TimmBatch:
    """A batch as T's collate function returns it: mixed uint8 images, and soft targets."""

    def __init__(self, batch: MicroBatch, recipe: Recipe) -> None:
        images, lam = batch.images.float(), 1.0
        if batch.mixing is not None:
            images, lam = mix_images(images, *batch.mixing), float(batch.mixing.lam[0])
        self.images = images.round().to(torch.uint8)
        self.targets = _soft_targets(batch.labels, lam, recipe.loss.smoothing, recipe.model.classes)


class TimmEngine:
    """T: bf16 autocast, torch.compile, timm's Lamb and ModelEmaV3, channels-last; fp32 on CPUs.

    It uses timm's own ClassificationTask, whose compiled module also evaluates: the fix of timm pull request 2699.
    """

    def __init__(
        self, recipe: Recipe, device: torch.device, compiled: bool, weights: dict[str, Tensor] | None = None
    ) -> None:
        self.recipe, self.device, self.dtype = recipe, device, torch.bfloat16
        model = plain_model(recipe, weights).to(device).to(memory_format=torch.channels_last)
        self.task = ClassificationTask(model, _timm_loss(recipe.loss), device=device, verbose=False)
        if recipe.optim.ema_decay is not None:
            self.task.setup_ema(decay=recipe.optim.ema_decay)
        self.optimizer = timm_lamb(model, recipe.optim)
        if compiled:
            self.task.compile()
        shape = (1, 3, 1, 1)  # as in timm's prefetcher: pixel values, not fractions
        self.mean = 255 * torch.tensor(recipe.data.mean, device=device).view(shape)
        self.std = 255 * torch.tensor(recipe.data.std, device=device).view(shape)
        self.updates = 0

    def _images(self, batch: TimmBatch) -> Tensor:
        images = batch.images.float().sub_(self.mean).div_(self.std)
        return images.contiguous(memory_format=torch.channels_last)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.device.type == "cuda")

    def __call__(self, batch: TimmBatch, lr: float) -> Tensor:
        self.task.train()
        _set_lr(self.optimizer, lr)
        images = self._images(batch)
        with self._autocast():
            loss = self.task(images, batch.targets)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        self.task.update_ema(step=self.updates)
        return loss.detach()

    @torch.no_grad()
    def predict(self, batch: TimmBatch) -> Tensor:
        self.task.eval()
        model = self.task.get_eval_model()
        assert model is not None
        with self._autocast():
            return model(self._images(batch))


def _timm_loss(section: Loss) -> nn.Module:
    return (
        BinaryCrossEntropy(smoothing=0.0, target_threshold=0.0) if section.name == "bce" else SoftTargetCrossEntropy()
    )
