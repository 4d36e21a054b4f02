"""DeiT (arXiv:2012.12877): the commands of facebookresearch/deit, README_deit.md, and main.py's defaults.

Transfers have no command: their settings are the authors' answers in issues. The distilled model at 384 px was trained
for 1000 epochs by a recipe that was not published, so it has no row.
"""

from typing import Literal

from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import (
    AdamWOptim,
    Augment,
    Data,
    Distill,
    Loss,
    Mix,
    Model,
    Optim,
    Run,
    Schedule,
    SGDOptim,
)
from deit_fast.recipe.table.notes import FACEBOOK

_NAMES = {"tiny": "DeiT-Ti", "small": "DeiT-S", "base": "DeiT-B"}
_DEFAULTS = """\
main.py's defaults: AdamW without clipping, lr 5e-4 per 512 views, weight decay 0.05, soft cross-entropy, --smoothing \
0.1 --mixup 0.8 --cutmix 1.0 --repeated-aug --aa rand-m9-mstd0.5-inc1 --reprob 0.25 --drop-path 0.1 (linear in depth) \
--epochs 300 --warmup-epochs 5 --warmup-lr 1e-6 --min-lr 1e-5 --eval-crop-ratio 0.875; --color-jitter does nothing \
beside RandAugment."""
_EVALUATION_MODE = """\
Finetuning ran in evaluation mode then, without stochastic depth (--no-train-mode today); model.train_mode=true turns \
it on.
"""
_TRANSFER = """\
The number of classes is the data's. Budget of the source: a batch of 768, mixed here as on 8 GPUs; results are in the \
paper only."""
_TEACHER = """\
The teacher's weights, regnety_160-a5fe301d.pth of the reference, are given with --teacher. It sees the mixed images."""
_SOFT = """ \
The README's command is the hard one; alpha 0.5 and tau 1 are main.py's defaults, without a published result. The \
paper's soft distillation has distill.alpha=0.1 distill.tau=3."""


def _describe(title: str, command: str, notes: str, budget: str) -> str:
    source = "Source: facebookresearch/deit, "
    return f"{title}\n{source}{command}\n{_DEFAULTS}\n{notes}{FACEBOOK}.\n{budget}"


def _pretrain(
    size: str, gpus: int, per_gpu: int, distillation: Literal["none", "hard", "soft"], top1: float | None
) -> Recipe:
    token = "" if distillation == "none" else "_distilled"
    script = (
        "run_with_submitit.py"
        if gpus > 8
        else f"torch.distributed.launch --nproc_per_node={gpus} --use_env main.py --batch-size {per_gpu}"
    )
    command = f"{script} --model deit_{size}{token}_patch16_224"
    notes = ""
    if distillation != "none":
        command += f" --distillation-type {distillation} --teacher-model regnety_160 --use_volta32"
        notes = _TEACHER + (_SOFT if distillation == "soft" else "") + "\n"
    how = f"{_NAMES[size]} at 224 px" if distillation == "none" else f"{_NAMES[size]} distilled ({distillation})"
    result = "" if top1 is None else f": {top1} %"
    return Recipe(
        name=f"deit_{size}{token}_1k_224{'_soft' if distillation == 'soft' else ''}",
        description=_describe(
            f"{how}, 300 epochs on ImageNet-1k{result}",
            f"README_deit.md:\n    {command}",
            notes,
            f"Budget of the source: {gpus} GPUs x {per_gpu} views.",
        ),
        model=Model(name=f"deit_{size}{token}_patch16", image_size=224, drop_path=0.1, drop_path_decay="linear"),
        data=Data(repeats=3, eval_crop_ratio=0.875),
        augment=Augment(crop="rrc", policy="rand_augment", color_jitter=0.0, erase=0.25),
        mix=Mix(mixup=0.8, cutmix=1.0, group=per_gpu),
        loss=Loss(name="cross_entropy", smoothing=0.1),
        distill=Distill(kind=distillation),
        optim=AdamWOptim(lr=1e-3, weight_decay=0.05, max_grad_norm=None),
        schedule=Schedule(epochs=300),
        run=Run(global_batch=gpus * per_gpu),
    )


def _finetune(
    *,
    name: str,
    title: str,
    source: str,
    notes: str,
    budget: str,
    size: int,
    batch: int,
    per_gpu: int,
    optim: Optim,
    schedule: Schedule,
    num_classes: int | None = None,
    drop_path: float = 0.0,
    erase: float = 0.0,
) -> Recipe:
    return Recipe(
        name=name,
        description=_describe(title, source, f"Start: deit_base_1k_224. {notes} {_EVALUATION_MODE}", budget),
        model=Model(
            name="deit_base_patch16",
            image_size=size,
            num_classes=num_classes,
            drop_path=drop_path,
            drop_path_decay="linear",
            train_mode=False,
        ),
        data=Data(repeats=3, eval_crop_ratio=0.875),
        augment=Augment(crop="rrc", policy="rand_augment", color_jitter=0.0, erase=erase),
        mix=Mix(mixup=0.8, cutmix=1.0, group=per_gpu),
        loss=Loss(name="cross_entropy", smoothing=0.1),
        optim=optim,
        schedule=schedule,
        run=Run(global_batch=batch, start="weights"),
    )


def _cifar(size: int) -> Recipe:
    return _finetune(
        name=f"deit_base_cifar_{size}_ft",
        title=f"DeiT-B at {size} px, transfer to CIFAR-10, CIFAR-100 and Cars",
        source="issue #45.",
        notes="SGD at 0.01 for 1000 epochs, no random erasing, no stochastic depth, the rest as for ImageNet. Whether "
        "0.01 is before the scaling by batch / 512 was not said; optim.lr=0.015 is after it.",
        budget=_TRANSFER,
        size=size,
        per_gpu=96,
        optim=SGDOptim(lr=0.01, weight_decay=1e-4, max_grad_norm=None),
        schedule=Schedule(epochs=1000),
        batch=768,
    )


ROWS = (
    # size, GPUs, views per GPU, distillation, top-1
    _pretrain("tiny", 4, 256, "none", 72.2),
    _pretrain("small", 4, 256, "none", 79.9),
    _pretrain("base", 16, 64, "none", 81.8),
    _pretrain("base", 16, 64, "hard", 83.4),
    _pretrain("base", 16, 64, "soft", None),
    _finetune(
        name="deit_base_1k_384_ft",
        title="DeiT-B at 384 px, 30 epochs of finetuning: 82.9 %",
        source="README_deit.md:\n    run_with_submitit.py --model deit_base_patch16_384 --batch-size 32 --finetune "
        "deit_base_patch16_224-b5f2ef4d.pth --input-size 384 --use_volta32 --nodes 2 --lr 5e-6 --weight-decay 1e-8 "
        "--epochs 30 --min-lr 5e-6",
        notes="The rate stays at 5e-6 after the warmup.",
        budget="Budget of the source: 16 GPUs x 32 views.",
        size=384,
        per_gpu=32,
        optim=AdamWOptim(lr=5e-6, weight_decay=1e-8, max_grad_norm=None),
        schedule=Schedule(epochs=30, min_lr=5e-6),
        batch=512,
        num_classes=1000,
        drop_path=0.1,
        erase=0.25,
    ),
    _cifar(224),
    _cifar(384),
    _finetune(
        name="deit_base_inat_224_ft",
        title="DeiT-B at 224 px, transfer to iNaturalist 2018 and 2019",
        source="issues #105 and #141.",
        notes="360 epochs at 7.5e-5, which is the rate after scaling; erasing at 0.1. data.category chooses the level "
        "of the taxonomy.",
        budget=_TRANSFER,
        size=224,
        per_gpu=96,
        optim=AdamWOptim(lr=7.5e-5, weight_decay=0.05, max_grad_norm=None),
        schedule=Schedule(epochs=360),
        batch=768,
        drop_path=0.1,
        erase=0.1,
    ),
)
