"""DeiT and DeiT III as affjljoo3581/deit3-jax trains them: one row per file of its config/.

Each row is the base of its family plus the fields that differ. Results and times are those of its README.
"""

from typing import Any

from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import AdamWOptim, Augment, Data, LambOptim, Loss, Mix, Model, Run, Schedule
from deit_fast.recipe.table.notes import STOCHASTIC_DEPTH

CHIPS = 32  # chips of the v4-64 pod slice: mixing is drawn once per chip and pass

_MODELS = {  # size: architecture, name in the paper, name in the configs
    "tiny": ("deit3_tiny_patch16", "ViT-Ti/16", "t16"),
    "small": ("deit3_small_patch16", "ViT-S/16", "s16"),
    "base": ("deit3_base_patch16", "ViT-B/16", "b16"),
    "large": ("deit3_large_patch16", "ViT-L/16", "l16"),
    "huge": ("deit3_huge_patch14", "ViT-H/14", "h14"),
}
_HERE = f"""\
Here: bf16 autocast stands for fp32 with a TPU's matrix products, which round to bf16 (run.precision=fp32: fp32 \
throughout); an epoch is a whole number of batches, where the source counts images / batch, so up to 0.1 % shorter; \
Mixup pairs an image with the batch's reversal, there with a permutation; {STOCHASTIC_DEPTH}."""
_REPEATS = (
    " Views of an image stay in one process, as there on one host (data.layout=spread: dealt out over all processes)."
)
_ERASING = " Erasing fills boxes with normal noise, where the source casts the noise to bytes, close to black or white."


def _row(
    base: Recipe,
    name: str,
    config: str,
    title: str,
    size: str,
    time: str | None,
    notes: str,
    **sections: dict[str, Any],
) -> Recipe:
    """`base` with another name, another description, and the fields that differ in each section."""
    architecture, paper_name, _ = _MODELS[size]
    row = base.derive(**{**sections, "model": {**sections["model"], "name": architecture}})
    passes, resolution = row.run.passes, row.model.image_size
    group = row.run.global_batch // passes // CHIPS
    here = _HERE + (_REPEATS if base.data.repeats > 1 else "") + (_ERASING if base.augment.erase else "")
    budget = f"Budget of the source: a v4-64 pod slice, {CHIPS} chips x {group} views"
    description = (
        f"{paper_name} at {resolution} px, {title}\nSource: affjljoo3581/deit3-jax, config/{config}.sh.\n{notes}\n"
        f"{here}\n{budget}{f' x {passes} passes' if passes > 1 else ''}{f', {time}' if time else ''}."
    )
    return row.derive(name=name, description=description, mix={"group": group})


def _percent(top1: float | None) -> str:
    return "not run" if top1 is None else f"{top1} %"


_SCHEDULE = {"warmup_epochs": 5, "warmup_prefix": True, "update": "step"}
_WARMUP = "The rate rises and falls step by step, and the cosine begins after the warmup. No moving average."
_FLAX = "GELU is flax's tanh approximation."
_LAMB = "LAMB has a trust ratio each for query, key and value, and clips gradients to a norm of 1."

_DEIT = Recipe(
    name="",
    model=Model(name="deit3_base_patch16", image_size=224, layer_scale=None, activation="gelu_tanh"),
    data=Data(repeats=3, layout="together", eval_crop_ratio=0.875),
    augment=Augment(crop="rrc", policy="rand_augment", color_jitter=0.0, erase=0.25),
    mix=Mix(mixup=0.8, cutmix=1.0),
    loss=Loss(name="cross_entropy", smoothing=0.1),
    optim=AdamWOptim(lr=1e-3, weight_decay=0.05, max_grad_norm=None, ema_decay=None),
    schedule=Schedule.model_validate({"epochs": 300, **_SCHEDULE}),
    run=Run(global_batch=1024),
)
_PRETRAIN_1K = Recipe(
    name="",
    model=Model(name="deit3_base_patch16", image_size=192, activation="gelu_tanh"),
    data=Data(repeats=3, layout="together"),
    augment=Augment(crop="rrc", policy="three_augment", color_jitter=0.3),
    mix=Mix(mixup=0.8, cutmix=1.0),
    loss=Loss(name="bce"),
    optim=LambOptim(lr=3e-3, split_qkv=True, max_grad_norm=1.0, ema_decay=None),
    schedule=Schedule.model_validate({"epochs": 800, **_SCHEDULE}),
    run=Run(global_batch=2048),
)
_FINETUNE_1K = Recipe(
    name="",
    model=Model(name="deit3_base_patch16", image_size=224, activation="gelu_tanh"),
    augment=Augment(crop="rrc", policy="rand_augment", color_jitter=0.0),
    mix=Mix(mixup=0.8, cutmix=1.0),
    loss=Loss(name="cross_entropy", smoothing=0.1),
    optim=AdamWOptim(lr=1e-5, weight_decay=0.1, max_grad_norm=None, ema_decay=None),
    schedule=Schedule.model_validate({"epochs": 20, **_SCHEDULE}),
    run=Run(global_batch=512, start="weights"),
)
_PRETRAIN_21K = Recipe(
    name="",
    model=Model(name="deit3_base_patch16", image_size=224, num_classes=None, activation="gelu_tanh"),
    augment=Augment(crop="src", policy="three_augment", color_jitter=0.3),
    mix=Mix(mixup=0.0, cutmix=1.0),
    loss=Loss(name="cross_entropy", smoothing=0.1),
    optim=LambOptim(lr=3e-3, weight_decay=0.02, split_qkv=True, max_grad_norm=1.0, ema_decay=None),
    schedule=Schedule.model_validate({"epochs": 240, **_SCHEDULE}),
    run=Run(global_batch=2048),
)
_FINETUNE_21K = Recipe(
    name="",
    model=Model(name="deit3_base_patch16", image_size=224, activation="gelu_tanh"),
    augment=Augment(crop="src", policy="three_augment", color_jitter=0.3),
    mix=Mix(mixup=0.0, cutmix=1.0),
    loss=Loss(name="cross_entropy", smoothing=0.1),
    optim=LambOptim(lr=3e-4, weight_decay=0.02, split_qkv=True, max_grad_norm=1.0, ema_decay=None),
    schedule=Schedule.model_validate({"epochs": 50, **_SCHEDULE}),
    run=Run(global_batch=2048, start="weights"),
)


def _deit(size: str, drop_path: float, seed: int, time: str, top1: float) -> Recipe:
    return _row(
        _DEIT, f"jax_deit_{size}_1k_224_300ep", f"deit/deit-{_MODELS[size][2]}-224-in1k-300ep",
        f"300 epochs on ImageNet-1k: {top1} %", size, time,
        f"DeiT's recipe without LayerScale; the position embedding has no class slot here either. Stochastic depth is "
        f"constant in depth. {_FLAX} {_WARMUP}",
        model={"drop_path": drop_path}, run={"seed": seed},
    )  # fmt: skip


def _pretrain_1k(
    size: str, resolution: int, epochs: int, drop_path: float, lr: float, weight_decay: float, time: str | None,
    top1: float | None,
) -> Recipe:  # fmt: skip
    pretraining = "" if size == "small" else "pt-"
    result = f": {_percent(top1)}" if size == "small" else ""
    return _row(
        _PRETRAIN_1K, f"jax_deit3_{size}_1k_{resolution}_{epochs}ep",
        f"deit3/in1k/deit3-{_MODELS[size][2]}-{pretraining}{resolution}-in1k-{epochs}ep",
        f"{epochs} epochs on ImageNet-1k{result}", size, time, f"{_LAMB} {_FLAX} {_WARMUP}",
        model={"image_size": resolution, "drop_path": drop_path}, optim={"lr": lr, "weight_decay": weight_decay},
        schedule={"epochs": epochs},
    )  # fmt: skip


def _finetune_1k(size: str, resolution: int, epochs: int, drop_path: float, top1: float | None) -> Recipe:
    start = f"{_MODELS[size][2]}-pt-{resolution}-in1k-{epochs}ep"
    return _row(
        _FINETUNE_1K, f"jax_deit3_{size}_1k_224_ft_{epochs}ep", f"deit3/in1k/deit3-{start}-ft-224-in1k-20ep",
        f"finetuning after {epochs} epochs: {_percent(top1)}", size, None,
        f"Start: jax_deit3_{size}_1k_{resolution}_{epochs}ep. {_FLAX} {_WARMUP}",
        model={"drop_path": drop_path},
    )  # fmt: skip


def _pretrain_21k(size: str, resolution: int, epochs: int, drop_path: float, time: str | None) -> Recipe:
    return _row(
        _PRETRAIN_21K, f"jax_deit3_{size}_21k_{resolution}_{epochs}ep",
        f"deit3/in21k/deit3-{_MODELS[size][2]}-pt-{resolution}-in21k-{epochs}ep",
        f"{epochs} epochs on ImageNet-21k", size, time,
        f"ImageNet-21k of winter 2021: 19,167 classes, 13,151,276 images, never evaluated. {_LAMB} {_FLAX} {_WARMUP}",
        model={"image_size": resolution, "drop_path": drop_path}, schedule={"epochs": epochs},
    )  # fmt: skip


def _finetune_21k(
    size: str, resolution: int, epochs: int, drop_path: float, accumulation: int, top1: float | None
) -> Recipe:
    start = f"{_MODELS[size][2]}-pt-{resolution}-in21k-{epochs}ep"
    return _row(
        _FINETUNE_21K, f"jax_deit3_{size}_21k_1k_224_ft_{epochs}ep", f"deit3/in21k/deit3-{start}-ft-224-in1k-50ep",
        f"1k after {epochs} epochs of 21k: {_percent(top1)}", size, None,
        f"Start: jax_deit3_{size}_21k_{resolution}_{epochs}ep; the head's rows are copied by the source's "
        f"in21k_to_in1k.json (class 850 has none). {_LAMB} {_FLAX} {_WARMUP}",
        model={"drop_path": drop_path}, run={"accumulation": accumulation if accumulation > 1 else "auto"},
    )  # fmt: skip


ROWS = (
    # size, drop path, seed, time, top-1
    _deit("tiny", 0.0, 0, "2 h 40 min", 73.1),
    _deit("small", 0.0, 0, "2 h 43 min", 79.68),
    _deit("base", 0.05, 1, "4 h 40 min", 81.46),
    # size, px, epochs, drop path, lr, weight decay, time, top-1 (where it is not finetuned)
    _pretrain_1k("small", 224, 400, 0.0, 4e-3, 0.02, "2 h 38 min", 80.7),
    _pretrain_1k("base", 192, 400, 0.1, 3e-3, 0.02, "4 h 42 min", None),
    _pretrain_1k("large", 192, 400, 0.4, 3e-3, 0.02, "14 h 10 min", None),
    _pretrain_1k("huge", 154, 400, 0.5, 3e-3, 0.02, "19 h 10 min", None),
    _pretrain_1k("small", 224, 800, 0.05, 4e-3, 0.05, "5 h 19 min", 81.44),
    _pretrain_1k("base", 192, 800, 0.2, 3e-3, 0.05, "9 h 28 min", None),
    _pretrain_1k("large", 192, 800, 0.5, 3e-3, 0.05, None, None),
    _pretrain_1k("huge", 154, 800, 0.6, 3e-3, 0.05, None, None),
    # size, px and epochs of the start, drop path, top-1
    _finetune_1k("base", 192, 400, 0.1, 83.6),
    _finetune_1k("large", 192, 400, 0.4, 84.62),
    _finetune_1k("huge", 154, 400, 0.5, 85.12),
    _finetune_1k("base", 192, 800, 0.2, 83.91),
    _finetune_1k("large", 192, 800, 0.5, None),
    _finetune_1k("huge", 154, 800, 0.6, None),
    # size, px, epochs, drop path, time
    _pretrain_21k("small", 224, 90, 0.05, "7 h 30 min"),
    _pretrain_21k("base", 224, 90, 0.1, "12 h 12 min"),
    _pretrain_21k("large", 224, 90, 0.3, "37 h 13 min"),
    _pretrain_21k("huge", 126, 90, 0.5, "35 h 51 min"),
    _pretrain_21k("small", 224, 240, 0.05, "20 h 6 min"),
    _pretrain_21k("base", 224, 240, 0.1, "33 h 9 min"),
    _pretrain_21k("large", 224, 240, 0.3, None),
    _pretrain_21k("huge", 126, 240, 0.5, None),
    # size, px and epochs of the start, drop path, accumulation, top-1
    _finetune_21k("small", 224, 90, 0.05, 1, 83.04),
    _finetune_21k("base", 224, 90, 0.1, 1, 85.35),
    _finetune_21k("large", 224, 90, 0.3, 1, 86.83),
    _finetune_21k("huge", 126, 90, 0.45, 2, 86.78),
    _finetune_21k("small", 224, 240, 0.05, 1, 83.39),
    _finetune_21k("base", 224, 240, 0.1, 1, 85.68),
    _finetune_21k("large", 224, 240, 0.3, 1, None),
    _finetune_21k("huge", 126, 240, 0.45, 2, None),
)
