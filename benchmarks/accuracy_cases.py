"""The cases of `accuracy`: the images, and the commands of ours and of timm's train.py that train on them."""

import sys
from dataclasses import dataclass
from pathlib import Path

Words = tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """A part of the data: of every `step`-th class from `first` on, the first `per_class` images (None: all)."""

    per_class: int | None = None
    first: int = 0
    step: int = 1


@dataclass(frozen=True)
class Ours:
    """`deit-fast train RECIPE` with its words. starts: whether it starts from the case's pretrained weights."""

    recipe: str
    words: Words
    starts: bool = False

    def command(self, images: Path, out: Path, seed: int, weights: Path | None) -> list[str]:
        start = ["--init", str(weights)] if self.starts else []
        return [sys.executable, "-m", "deit_fast.cli", "train", self.recipe, "--data", str(images), "--out", str(out),
                *start, *self.words, f"run.seed={seed}"]  # fmt: skip


@dataclass(frozen=True)
class Timm:
    """timm's `python train.py` with its flags. starts: whether it starts from the case's pretrained weights."""

    flags: Words
    starts: bool = False

    def command(self, script: Path, images: Path, out: Path, seed: int, weights: Path | None) -> list[str]:
        start = ["--pretrained", "--pretrained-path", str(weights)] if self.starts else []
        return [sys.executable, str(script), str(images), "--train-split", "train", "--val-split", "val", "--device",
                "cpu", "--output", str(out.parent), "--experiment", out.name, "--seed", str(seed), *start,
                *self.flags]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Trainings of the same images for the same number of epochs, by contender.

    images: None means the demo's digits.
    """

    name: str
    images: Cut | None
    epochs: int
    contenders: dict[str, Ours | Timm]

    @property
    def starts(self) -> bool:
        """Whether a contender starts from pretrained weights."""
        return any(each.starts for each in self.contenders.values())


_MODEL: Words = ("model.name=deit3_nano_patch8", "model.image_size=32", "model.num_classes=null", "model.layer_scale=1",
                 "run.checkpoint_every=null")  # fmt: skip
"""A ViT of 4 blocks of width 128 with 0.9 M parameters: at 32 px, 16 patches and the class token."""


def _timm_model(classes: int) -> Words:
    """The same model as timm's arguments."""
    return ("--model", "deit3_small_patch16_224", "--model-kwargs", "img_size=32", "patch_size=8", "embed_dim=128",
            "depth=4", "num_heads=4", "init_values=1.0", "--img-size", "32", "--num-classes", str(classes),
            "--workers", "2")  # fmt: skip


_EPOCHS, _BATCH = 8, 128
_PLAIN: Words = (
    *_MODEL, "model.drop_path=0", "data.repeats=1", "augment.scale=[0.5,1.0]", "augment.policy=none",
    "augment.color_jitter=0", "mix.mixup=0", "mix.cutmix=0", "loss.name=cross_entropy", "loss.smoothing=0.1",
    "optim.lr=5e-3", "optim.weight_decay=0.05", "optim.ema_decay=null", f"run.global_batch={_BATCH}",
)  # fmt: skip
_SCRATCH: Words = (*_PLAIN, f"schedule.epochs={_EPOCHS}", "schedule.warmup_epochs=1", f"run.eval_every={_EPOCHS}",
                   "run.precision=bf16")  # fmt: skip
"""Crops of half the image and more, flips, label smoothing, LAMB that clips at 1, bf16 autocast, cosine by step."""
_TIMM_SCRATCH: Words = (
    *_timm_model(10), "--amp", "--amp-dtype", "bfloat16", "--mean", "0.485", "0.456", "0.406", "--std", "0.229",
    "0.224", "0.225", "--crop-pct", "1.0", "--interpolation", "bicubic", "--train-interpolation", "bicubic", "--scale",
    "0.5", "1.0", "--color-jitter", "0", "--smoothing", "0.1", "--opt", "lamb", "--opt-eps", "1e-8", "--lr", "5e-3",
    "--weight-decay", "0.05", "--sched-on-updates", "--warmup-epochs", "1", "--warmup-lr", "1e-6", "--min-lr", "1e-5",
    "--epochs", str(_EPOCHS), "--batch-size", str(_BATCH), "--val-interval", str(_EPOCHS),
)  # fmt: skip
"""The same settings as timm's arguments."""

PRETRAINING_CUT = Cut(per_class=2000, first=1, step=2)
PRETRAINING = Ours("deit3_small_1k_224", (*_PLAIN, "augment.policy=three_augment", "augment.color_jitter=0.3",
                                          "augment.scale=[0.3,1.0]", "schedule.epochs=20", "schedule.warmup_epochs=2",
                                          "run.eval_every=20"))  # fmt: skip
"""Trains on the classes that the cuts for small data leave out."""
_SMALL = {10: 300, 50: 300, 500: 100}
"""Images per class in the cuts for small data, and epochs from scratch. Finetuning takes 50 epochs."""
_SMALL_BATCH = 64  # batch size of finetune_small, scratch_small and probe


def _drop_path(mode: str) -> Ours:
    return Ours("deit3_small_1k_224", (*_SCRATCH, "model.drop_path=0.5", f"model.drop_path_mode={mode}"))


def _small(name: str, images: Cut | None, count: int, classes: int, scratch_epochs: int) -> list[Case]:
    """Own recipes for small data against timm's train.py with its defaults: SGD, augmentation, learning rate."""

    def ours(recipe: str, epochs: int, starts: bool) -> Ours:
        return Ours(recipe, (*_MODEL, f"schedule.epochs={epochs}", f"run.eval_every={epochs}"), starts)

    def timm(epochs: int, starts: bool) -> Timm:
        return Timm((*_timm_model(classes), "--batch-size", str(min(_SMALL_BATCH, count)), "--epochs", str(epochs),
                     "--val-interval", str(epochs)), starts)  # fmt: skip

    return [
        Case(f"{name}_scratch", images, scratch_epochs,
             {"ours": ours("scratch_small", scratch_epochs, False), "timm": timm(scratch_epochs, False)}),
        Case(f"{name}_finetune", images, 50,
             {"ours": ours("finetune_small", 50, True), "timm": timm(50, True), "probe": ours("probe", 50, True)}),
    ]  # fmt: skip


def cases(per_class: int | None) -> dict[str, Case]:
    """The cases by name, in the order in which they run. per_class: images of each class in the first two."""
    found = [
        Case("scratch", Cut(per_class), _EPOCHS,
             {"ours": Ours("deit3_small_1k_224", _SCRATCH), "timm": Timm(_TIMM_SCRATCH)}),
        Case("drop_path", Cut(per_class), _EPOCHS,
             {"subset": _drop_path("subset"), "bernoulli": _drop_path("bernoulli")}),
    ]  # fmt: skip
    for each, epochs in _SMALL.items():
        found += _small(f"small_{each}", Cut(each, step=2), 5 * each, 5, epochs)
    found += _small("digits", None, 1437, 10, 100)
    return {case.name: case for case in found}
