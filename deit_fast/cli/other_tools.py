"""Options of timm's, DeiT's, mmpretrain's and Ultralytics' trainers, with their names in this project."""

from collections.abc import Sequence

from deit_fast.runtime.errors import RecipeError

OPTIONS: dict[str, str] = {
    # Names here: key=value words of the recipe, and options of `deit-fast train`.
    "--lr": "optim.lr=",
    "--lr0": "optim.lr=",
    "--batch-size": "run.global_batch=",
    "--epochs": "schedule.epochs=",
    "--warmup-epochs": "schedule.warmup_epochs=",
    "--warmup-lr": "schedule.warmup_lr=",
    "--min-lr": "schedule.min_lr=",
    "--opt": "optim.name=",
    "--optimizer": "optim.name=",
    "--opt-eps": "optim.eps=",
    "--opt-betas": "optim.betas=",
    "--momentum": "optim.momentum=",
    "--weight-decay": "optim.weight_decay=",
    "--wd": "optim.weight_decay=",
    "--layer-decay": "optim.layer_decay=",
    "--clip-grad": "optim.max_grad_norm=",
    "--model-ema-decay": "optim.ema_decay=",
    "--attn-only": 'optim.trainable="attention"',
    "--drop": "model.dropout=",
    "--drop-path": "model.drop_path=",
    "--model": "model.name=",
    "--arch": "model.name=",
    "--input-size": "model.image_size=",
    "--img-size": "model.image_size=",
    "--imgsz": "model.image_size=",
    "--num-classes": "model.num_classes=",
    "--nb-classes": "model.num_classes=",
    "--smoothing": "loss.smoothing=",
    "--bce-loss": "loss.name=bce",
    "--mixup": "mix.mixup=",
    "--cutmix": "mix.cutmix=",
    "--color-jitter": "augment.color_jitter=",
    "--aa": "augment.policy=",
    "--reprob": "augment.erase=",
    "--hflip": "augment.flip=",
    "--scale": "augment.scale=",
    "--src": "augment.crop=",
    "--crop-pct": "data.eval_crop_ratio=",
    "--eval-crop-ratio": "data.eval_crop_ratio=",
    "--repeated-aug": "data.repeats=3",
    "--aug-repeats": "data.repeats=",
    "--mean": "data.mean=",
    "--std": "data.std=",
    "--seed": "run.seed=",
    "--amp": "run.precision=",
    "--amp-dtype": "run.precision=",
    "--torchcompile": "run.compile=",
    "--accum-iter": "run.accumulation=",
    "--grad-accum-steps": "run.accumulation=",
    "--grad-checkpointing": "run.grad_checkpointing=",
    "--log-interval": "run.log_every=",
    "--checkpoint-hist": "run.keep_checkpoints=",
    "--val-interval": "run.eval_every=",
    "--data-dir": "--data",
    "--data-path": "--data",
    "--val-split": "--val",
    "--output": "--out",
    "--output-dir": "--out",
    "--work-dir": "--out",
    "--project": "--out",
    "--finetune": "--init",
    "--initial-checkpoint": "--init",
    "--pretrained": "--init",
    "--weights": "--init",
    "--load-from": "--init",
    "--teacher-path": "--teacher",
    "--distillation-type": "distill.kind=",
    "--teacher-model": "distill.teacher=",
}
"""Hints by the option's name, with dashes. None of these is an option of deit-fast."""

EVALUATE = {"--eval", "--eval-only"}
"""Other trainers' names for `deit-fast evaluate`."""


def refuse_options_of_others(words: Sequence[str]) -> None:
    """Raises RecipeError with a line for each word of a command that is another trainer's option."""
    lines = [f"{word}: no such option{hint}" for word in words if word.startswith("--") and (hint := _hint(word))]
    if lines:
        raise RecipeError("\n".join(lines))


def _hint(word: str) -> str:
    name, equals, value = word.partition("=")
    name = name.replace("_", "-")
    if name in EVALUATE:
        return " (did you mean deit-fast evaluate?)"
    if (meant := OPTIONS.get(name)) is None:
        return ""
    if meant.startswith("--"):
        return f" (did you mean {meant!r}?)"
    shown = f"{meant}{value if equals else 'VALUE'}" if meant.endswith("=") else meant
    return f" (did you mean the word {shown}?)"
