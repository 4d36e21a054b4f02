"""DeiT III (arXiv:2204.07118): the commands of facebookresearch/deit, README_revenge.md, and main.py's defaults.

The results are those of its published logs, at the resolution trained at. No command was published for ViT-M, nor for
384 px after ImageNet-21k, so there is no row for either.
"""

from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import AdamWOptim, Augment, Data, LambOptim, Loss, Mix, Model, Run, Schedule
from deit_fast.recipe.table.notes import FACEBOOK

_MODELS = {  # size: architecture, the reference's --model, name in the paper
    "small": ("deit3_small_patch16", "deit_small_patch16_LS", "ViT-S/16"),
    "base": ("deit3_base_patch16", "deit_base_patch16_LS", "ViT-B/16"),
    "large": ("deit3_large_patch16", "deit_large_patch16_LS", "ViT-L/16"),
    "huge": ("deit3_huge_patch14", "deit_huge_patch14_LS", "ViT-H/14"),
}
_HUGE = " 14 px patches cover {} of the {} px; the border is not seen, as in the reference."


def _describe(
    title: str, size: str, resolution: int, drop_path: float, gpus: int, per_gpu: int, flags: str, notes: str
) -> str:
    patches = resolution // 14 * 14
    border = _HUGE.format(patches, resolution) if size == "huge" and patches < resolution else ""
    return (
        f"{_MODELS[size][2]} at {resolution} px, {title}\n"
        "Source: facebookresearch/deit, README_revenge.md:\n"
        f"    run_with_submitit.py --model {_MODELS[size][1]} --input-size {resolution} --batch-size {per_gpu} "
        f"--nodes {gpus // 8} --ngpus 8 --drop-path {drop_path} {flags} --sched cosine --warmup-epochs 5 "
        "--warmup-lr 1e-6 --unscale-lr --reprob 0.0 --drop 0.0 --seed 0 --eval-crop-ratio 1.0\n"
        f"{notes}{border}\n{FACEBOOK}; blur is the Gaussian itself.\n"
        f"Budget of the source: {gpus} GPUs x {per_gpu} views."
    )


def _pretrain_1k(
    size: str, resolution: int, drop_path: float, lr: float, gpus: int, per_gpu: int, top1: float
) -> Recipe:
    flags = (
        f"--epochs 800 --lr {lr:g} --weight-decay 0.05 --opt fusedlamb --bce-loss --smoothing 0.0 --mixup .8 "
        "--cutmix 1.0 --repeated-aug --ThreeAugment --color-jitter 0.3"
    )
    notes = (
        "FusedLAMB clips the global gradient norm to 1 by itself. A shorter training takes less weight decay and "
        "stochastic depth: see jax_deit3_*_400ep."
    )
    return Recipe(
        name=f"deit3_{size}_1k_{resolution}",
        description=_describe(
            f"800 epochs on ImageNet-1k: {top1} %", size, resolution, drop_path, gpus, per_gpu, flags, notes
        ),
        model=Model(name=_MODELS[size][0], image_size=resolution, drop_path=drop_path),
        data=Data(repeats=3),
        augment=Augment(crop="rrc", policy="three_augment", color_jitter=0.3),
        mix=Mix(mixup=0.8, cutmix=1.0, group=per_gpu),
        loss=Loss(name="bce"),
        optim=LambOptim(lr=lr, weight_decay=0.05),
        schedule=Schedule(epochs=800),
        run=Run(global_batch=gpus * per_gpu),
    )


def _finetune_1k(
    size: str, resolution: int, drop_path: float, gpus: int, per_gpu: int, start: str, top1: float
) -> Recipe:
    flags = (
        "--epochs 20 --lr 1e-5 --weight-decay 0.1 --opt adamw --smoothing 0.1 --mixup .8 --cutmix 1.0 "
        "--no-repeated-aug --aa rand-m9-mstd0.5-inc1 --finetune"
    )
    notes = (
        f"Start: {start}. The rate stays at 1e-5 after the warmup, because main.py's --min-lr is the same. AdamW does "
        "not clip. --color-jitter, where it is given, does nothing beside RandAugment and is 0 here."
    )
    if size == "small":
        notes += " The README's first revision had another command, which is deit3_small_1k_384_ft_lamb."
    return Recipe(
        name=f"deit3_{size}_1k_{resolution}_ft",
        description=_describe(
            f"finetuning on ImageNet-1k: {top1} %", size, resolution, drop_path, gpus, per_gpu, flags, notes
        ),
        model=Model(name=_MODELS[size][0], image_size=resolution, drop_path=drop_path),
        augment=Augment(crop="rrc", policy="rand_augment", color_jitter=0.0),
        mix=Mix(mixup=0.8, cutmix=1.0, group=per_gpu),
        loss=Loss(name="cross_entropy", smoothing=0.1),
        optim=AdamWOptim(lr=1e-5, weight_decay=0.1, max_grad_norm=None),
        schedule=Schedule(epochs=20),
        run=Run(global_batch=gpus * per_gpu, start="weights"),
    )


def _pretrain_21k(
    size: str, resolution: int, epochs: int, drop_path: float, gpus: int, per_gpu: int, top1: float
) -> Recipe:
    flags = (
        f"--epochs {epochs} --lr 0.001 --weight-decay 0.02 --opt fusedlamb --smoothing 0.1 --mixup 0 --cutmix 1.0 "
        "--no-repeated-aug --ThreeAugment --src --color-jitter 0.3"
    )
    notes = (
        "The README: a batch of 4096 with a rate of 0.0015 works too. The published code has no ImageNet-21k data set "
        "(its IMNET always has 1000 classes; issue #219 speaks of 21,844), so the number of classes is the data's."
    )
    return Recipe(
        name=f"deit3_{size}_21k_{resolution}",
        description=_describe(
            f"{epochs} epochs on ImageNet-21k: {top1} %", size, resolution, drop_path, gpus, per_gpu, flags, notes
        ),
        model=Model(name=_MODELS[size][0], image_size=resolution, drop_path=drop_path, num_classes=None),
        augment=Augment(crop="src", policy="three_augment", color_jitter=0.3),
        mix=Mix(mixup=0.0, cutmix=1.0, group=per_gpu),
        loss=Loss(name="cross_entropy", smoothing=0.1),
        optim=LambOptim(lr=1e-3, weight_decay=0.02),
        schedule=Schedule(epochs=epochs),
        run=Run(global_batch=gpus * per_gpu),
    )


def _finetune_21k(size: str, drop_path: float, gpus: int, per_gpu: int, start: str, top1: float) -> Recipe:
    flags = (
        "--epochs 50 --lr 0.0003 --weight-decay 0.02 --opt fusedlamb --smoothing 0.1 --mixup 0 --cutmix 1.0 "
        "--no-repeated-aug --ThreeAugment --src --color-jitter 0.3 --finetune"
    )
    notes = (
        f"Start: {start}, with a new head: the log begins at 0.1 % top-1. (The README's command leaves --finetune out.)"
    )
    return Recipe(
        name=f"deit3_{size}_21k_1k_224_ft",
        description=_describe(f"from 21k to ImageNet-1k: {top1} %", size, 224, drop_path, gpus, per_gpu, flags, notes),
        model=Model(name=_MODELS[size][0], image_size=224, drop_path=drop_path),
        augment=Augment(crop="src", policy="three_augment", color_jitter=0.3),
        mix=Mix(mixup=0.0, cutmix=1.0, group=per_gpu),
        loss=Loss(name="cross_entropy", smoothing=0.1),
        optim=LambOptim(lr=3e-4, weight_decay=0.02),
        schedule=Schedule(epochs=50),
        run=Run(global_batch=gpus * per_gpu, start="weights"),
    )


_SMALL_384 = _finetune_1k("small", 384, 0.0, 8, 64, "deit3_small_1k_224", 83.45)

ROWS = (
    # size, px, drop path, lr, GPUs, views per GPU, top-1
    _pretrain_1k("small", 224, 0.05, 4e-3, 8, 256, 81.38),
    _pretrain_1k("base", 192, 0.2, 3e-3, 8, 256, 82.82),
    _pretrain_1k("large", 192, 0.45, 3e-3, 32, 64, 84.02),
    _pretrain_1k("huge", 160, 0.6, 3e-3, 32, 64, 83.48),
    # size, px, drop path, GPUs, views per GPU, start, top-1
    _finetune_1k("base", 224, 0.2, 8, 64, "deit3_base_1k_192", 83.8),
    _finetune_1k("large", 224, 0.45, 8, 64, "deit3_large_1k_192", 84.86),
    _finetune_1k("huge", 224, 0.55, 16, 32, "deit3_huge_1k_160", 85.22),
    _SMALL_384,
    _finetune_1k("base", 384, 0.15, 16, 32, "deit3_base_1k_224_ft", 85.08),
    _finetune_1k("large", 384, 0.4, 32, 16, "deit3_large_1k_224_ft", 85.81),
    _SMALL_384.derive(
        name="deit3_small_1k_384_ft_lamb",
        description="ViT-S/16 at 384 px, finetuning on ImageNet-1k, older command\n"
        "Source: facebookresearch/deit, README_revenge.md as first published: deit3_small_1k_384_ft with --opt "
        "fusedlamb (which clips at 1) and --repeated-aug, before AdamW without repeats replaced them. No result "
        "of this command was published.\nStart: deit3_small_1k_224. The rate stays at 1e-5 after the warmup. "
        f"--color-jitter 0.3 does nothing beside RandAugment and is 0 here.\n{FACEBOOK}.\n"
        "Budget of the source: 8 GPUs x 64 views.",
        data={"repeats": 3},
        optim={"name": "lamb", "max_grad_norm": 1.0},
    ),
    # size, px, epochs, drop path, GPUs, views per GPU, last top-1 of the log (issue #167)
    _pretrain_21k("small", 224, 240, 0.05, 16, 128, 54.1),
    _pretrain_21k("base", 224, 240, 0.1, 32, 64, 56.5),
    _pretrain_21k("large", 224, 240, 0.3, 32, 64, 57.4),
    _pretrain_21k("huge", 128, 90, 0.5, 32, 64, 58.0),
    # size, drop path, GPUs, views per GPU, start, top-1
    _finetune_21k("small", 0.05, 16, 128, "deit3_small_21k_224", 83.07),
    _finetune_21k("base", 0.15, 32, 64, "deit3_base_21k_224", 85.7),
    _finetune_21k("large", 0.4, 32, 64, "deit3_large_21k_224", 86.98),
    _finetune_21k("huge", 0.45, 32, 64, "deit3_huge_21k_128", 87.18),
)
