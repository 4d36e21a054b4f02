"""What `accuracy` trains: which images, and the commands of ours and of timm's train.py that get them."""

import sys
from dataclasses import dataclass
from pathlib import Path

Words = tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """Some of a data set's images: `per_class` of each of its classes from `first` on, every `step`-th. None: all."""

    per_class: int | None = None
    first: int = 0
    step: int = 1


@dataclass(frozen=True)
class Ours:
    """`deit-fast train RECIPE` with its words."""

    recipe: str
    words: Words
    start: bool = False
    """Whether it starts from the case's pretrained weights."""

    def command(self, data: Path, out: Path, seed: int, start: Path | None) -> list[str]:
        weights = ["--init", str(start)] if self.start else []
        return [sys.executable, "-m", "deit_fast.cli", "train", self.recipe, "--data", str(data), "--out", str(out),
                *weights, *self.words, f"run.seed={seed}"]  # fmt: skip


@dataclass(frozen=True)
class Timm:
    """`python train.py` of timm with its flags."""

    flags: Words
    start: bool = False

    def command(self, script: Path, data: Path, out: Path, seed: int, start: Path | None) -> list[str]:
        weights = ["--pretrained", "--pretrained-path", str(start)] if self.start else []
        return [sys.executable, str(script), str(data), "--train-split", "train", "--val-split", "val", "--device",
                "cpu", "--output", str(out.parent), "--experiment", out.name, "--seed", str(seed), *weights,
                *self.flags]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Trainings of the same images, of which each contender's has the same number of views."""

    name: str
    cut: Cut
    epochs: int
    contenders: dict[str, Ours | Timm]


MODEL: Words = ("model.name=deit3_nano_patch8", "model.image_size=32", "model.num_classes=null", "model.layer_scale=1")
TIMM_MODEL: Words = ("--model", "deit3_small_patch16_224", "--model-kwargs", "img_size=32", "patch_size=8",
                     "embed_dim=128", "depth=4", "num_heads=4", "init_values=1.0", "--img-size", "32",
                     "--num-classes", "10", "--workers", "2")  # fmt: skip
"""The same model in both words: a ViT of 4 blocks of 128, 0.9 M parameters, 16 patches of 8 px and the class token."""

_EPOCHS, _BATCH = 8, 128
_OURS: Words = (
    *MODEL, "model.drop_path=0", "data.repeats=1", "augment.scale=[0.5,1.0]", "augment.policy=none",
    "augment.color_jitter=0", "mix.mixup=0", "mix.cutmix=0", "loss.name=cross_entropy", "loss.smoothing=0.1",
    "optim.lr=5e-3", "optim.weight_decay=0.05", "optim.ema_decay=null", f"schedule.epochs={_EPOCHS}",
    "schedule.warmup_epochs=1", "schedule.min_lr=1e-5", f"run.global_batch={_BATCH}", f"run.eval_every={_EPOCHS}",
    "run.checkpoint_every=null", "run.precision=bf16",
)  # fmt: skip
_TIMM: Words = (
    *TIMM_MODEL, "--amp", "--amp-dtype", "bfloat16", "--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224",
    "0.225", "--crop-pct", "1.0", "--interpolation", "bicubic", "--train-interpolation", "bicubic", "--scale", "0.5",
    "1.0", "--color-jitter", "0", "--smoothing", "0.1", "--opt", "lamb", "--opt-eps", "1e-8", "--lr", "5e-3",
    "--weight-decay", "0.05", "--sched-on-updates", "--warmup-epochs", "1", "--warmup-lr", "1e-6", "--min-lr", "1e-5",
    "--epochs", str(_EPOCHS), "--batch-size", str(_BATCH), "--val-interval", str(_EPOCHS),
)  # fmt: skip
"""Crops of half the image and more, flips, label smoothing, LAMB with its clip at 1, bf16 autocast, cosine by step."""


def _drop_path(mode: str) -> Ours:
    return Ours("deit3_small_1k_224", (*_OURS, "model.drop_path=0.5", f"model.drop_path_mode={mode}"))


def cases(per_class: int | None) -> dict[str, Case]:
    """The cases by name, in the order in which they are run. per_class: images of each class of the first two."""
    found = [
        Case("scratch", Cut(per_class), _EPOCHS, {"ours": Ours("deit3_small_1k_224", _OURS), "timm": Timm(_TIMM)}),
        Case("drop_path", Cut(per_class), _EPOCHS, {"subset": _drop_path("subset"),
                                                    "bernoulli": _drop_path("bernoulli")}),
    ]  # fmt: skip
    return {case.name: case for case in found}
