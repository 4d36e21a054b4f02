"""The recipe table: one row per published training command, a variant as its base row plus the fields that differ.

Facts from facebookresearch/deit (README_revenge and the argument defaults of main.py) and DeiT III, arXiv:2204.07118.
"""

from collections.abc import Iterable
from pathlib import Path

from deit_fast.errors import RecipeError, suggest
from deit_fast.recipe import Recipe, load_recipe_file
from deit_fast.sections import Augment, Data, Loss, Mix, Model, Optim, Run, Schedule

_PRETRAIN = """\
DeiT III ViT-{size} pretraining on ImageNet-1k, 800 epochs at {resolution} px: facebookresearch/deit README_revenge.
main.py --model {model} --batch-size {per_gpu} --epochs 800 --input-size {resolution} --drop-path {drop_path} \
--lr {lr} --weight-decay 0.05 --opt fusedlamb --bce-loss --smoothing 0.0 --mixup .8 --cutmix 1.0 --ThreeAugment \
--color-jitter 0.3 --repeated-aug --reprob 0.0 --unscale-lr --warmup-epochs 5 --eval-crop-ratio 1.0
Here: bf16 instead of fp16, the learning rate follows every step (schedule.reference_epoch_steps=true restores the \
per-epoch, one-epoch-late one), the moving average is evaluated too, and stochastic depth from a rate of 0.1 on runs \
branches on exactly the kept share of the batch (model.drop_path_mode=bernoulli restores the draw per sample). \
Log of the reference: {top1} % top-1."""

_FINETUNE = """\
DeiT III ViT-{size} finetuning on ImageNet-1k at {resolution} px, 20 epochs, from {start}: \
facebookresearch/deit README_revenge.
AdamW, lr 1e-5 (constant after the warmup: the minimum is the same), weight decay 0.1, soft cross-entropy with \
smoothing 0.1, RandAugment m9-mstd0.5-inc1, no repeated augmentation, no gradient clipping; the reference's \
--color-jitter does nothing beside RandAugment and is 0 here. Stochastic depth is the pretraining's. \
Log of the reference: {top1} % top-1."""


def _pretrain(
    size: str, model: str, reference: str, resolution: int, per_gpu: int, lr: float, drop_path: float, top1: float
) -> Recipe:
    return Recipe(
        name=f"deit3_{size}_1k_{resolution}",
        description=_PRETRAIN.format(
            size=size[0].upper(),
            model=reference,
            resolution=resolution,
            per_gpu=per_gpu,
            lr=lr,
            drop_path=drop_path,
            top1=top1,
        ),
        model=Model(name=model, image_size=resolution, drop_path=drop_path),
        data=Data(repeats=3),
        mix=Mix(group=per_gpu),
        optim=Optim(lr=lr),
        run=Run(global_batch=2048),
    )


def _finetune(
    size: str, model: str, resolution: int, start: str, per_gpu: int, drop_path: float, top1: float
) -> Recipe:
    return Recipe(
        name=f"deit3_{size}_1k_{resolution}_ft",
        description=_FINETUNE.format(size=size[0].upper(), resolution=resolution, start=start, top1=top1),
        model=Model(name=model, image_size=resolution, drop_path=drop_path),
        augment=Augment(policy="rand_augment", color_jitter=0.0),
        mix=Mix(group=per_gpu),
        loss=Loss(name="cross_entropy", smoothing=0.1),
        optim=Optim(name="adamw", lr=1e-5, weight_decay=0.1, max_grad_norm=None),
        schedule=Schedule(epochs=20),
        run=Run(global_batch=512),
    )


_SMALL_384 = _finetune("small", "deit3_small_patch16", 384, "deit3_small_1k_224", 64, 0.0, 83.45)
_DEMO = Recipe(
    name="demo_pretrain",
    description="""\
The demo's pretraining: a 0.8 M-parameter ViT on 1,437 real handwritten digits at 24 px, minutes on two CPU cores.
Differs from deit3_small_1k_224 where hundreds of epochs on a million images cannot be had: cross-entropy, no mixing \
and LayerScale 1 (BCE with mixup and cutmix at LayerScale 1e-4 is still at chance after 12 epochs here), no stochastic \
depth, crops of at least 60 % of the image, no flip (a mirrored digit is another sign), a short moving average.""",
    model=Model(name="deit3_nano_patch4", image_size=24, num_classes=10, layer_scale=1.0),
    augment=Augment(scale=(0.6, 1.0), flip=0.0),
    mix=Mix(mixup=0.0, cutmix=0.0),
    loss=Loss(name="cross_entropy"),
    optim=Optim(lr=5e-3, ema_decay=0.99),
    schedule=Schedule(epochs=26, warmup_epochs=2),
    run=Run(global_batch=32, log_every=44, eval_every=5),
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _pretrain("small", "deit3_small_patch16", "deit_small_patch16_LS", 224, 256, 4e-3, 0.05, 81.38),
        _pretrain("base", "deit3_base_patch16", "deit_base_patch16_LS", 192, 256, 3e-3, 0.2, 82.82),
        _pretrain("large", "deit3_large_patch16", "deit_large_patch16_LS", 192, 64, 3e-3, 0.45, 84.02),
        _pretrain("huge", "deit3_huge_patch14", "deit_huge_patch14_LS", 160, 64, 3e-3, 0.6, 83.48),
        _finetune("base", "deit3_base_patch16", 224, "deit3_base_1k_192", 64, 0.2, 83.8),
        _finetune("large", "deit3_large_patch16", 224, "deit3_large_1k_192", 64, 0.45, 84.86),
        _finetune("huge", "deit3_huge_patch14", 224, "deit3_huge_1k_160", 32, 0.55, 85.22),
        _SMALL_384,
        _finetune("base", "deit3_base_patch16", 384, "deit3_base_1k_224_ft", 32, 0.15, 85.08),
        _finetune("large", "deit3_large_patch16", 384, "deit3_large_1k_224_ft", 16, 0.4, 85.81),
        _SMALL_384.model_copy(
            update={
                "name": "deit3_small_1k_384_ft_lamb",
                "description": "deit3_small_1k_384_ft as the first README_revenge had it: LAMB (which clips at 1) "
                "and repeated augmentation, instead of the AdamW command that replaced it.",
                "data": Data(repeats=3),
                "optim": Optim(lr=1e-5, weight_decay=0.1),
            }
        ),
        _DEMO,
        _DEMO.model_copy(
            update={
                "name": "demo_finetune",
                "description": "The demo's finetuning: demo_pretrain's model at 36 px, 12 epochs at a fifth of its lr.",
                "model": _DEMO.model.model_copy(update={"image_size": 36}),
                "optim": Optim(lr=1e-3, ema_decay=0.99),
                "schedule": Schedule(epochs=12, warmup_epochs=1),
                "run": _DEMO.run.model_copy(update={"eval_every": 2}),
            }
        ),
    )
}


def list_recipes() -> list[str]:
    """Names of the recipe table, in its order."""
    return list(RECIPES)


def get_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe `name` of the table, or of a .toml or .json file, with `section.key=value` words applied.

    Raises RecipeError, one line, for an unknown name, an unreadable file or a bad override.
    """
    if name in RECIPES:
        recipe = RECIPES[name]
    elif name.endswith((".toml", ".json")):
        recipe = load_recipe_file(Path(name))
    else:
        raise RecipeError(
            f"recipe {name!r}: expected one of {', '.join(RECIPES)}, or a .toml or .json file{suggest(name, RECIPES)}"
        )
    return recipe.override(overrides)
