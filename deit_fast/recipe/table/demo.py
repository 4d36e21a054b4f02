"""The demo's two recipes: a whole training in minutes on two CPU cores."""

from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import Augment, LambOptim, Loss, Mix, Model, Run, Schedule

_PRETRAIN = Recipe(
    name="demo_pretrain",
    description="""\
A 0.8 M-parameter ViT on 1,437 digits at 16 px, 24 epochs
The demo's pretraining on real handwritten digits, a minute on two CPU cores. It stays short and at a low resolution, \
so that the finetuning has something to gain. Differs from deit3_small_1k_224 where \
hundreds of epochs on a million images cannot be had: cross-entropy, no mixing and LayerScale 1 (BCE with mixup and \
cutmix at LayerScale 1e-4 is still at chance after 12 epochs here), no stochastic depth, crops of at least 60 % of the \
image, no flip (a mirrored digit is another sign), a short moving average.""",
    model=Model(name="deit3_nano_patch4", image_size=16, num_classes=10, layer_scale=1.0),
    augment=Augment(scale=(0.6, 1.0), flip=0.0),
    mix=Mix(mixup=0.0, cutmix=0.0),
    loss=Loss(name="cross_entropy"),
    optim=LambOptim(lr=5e-3, ema_decay=0.99),
    schedule=Schedule(epochs=24, warmup_epochs=2),
    run=Run(global_batch=32, log_every=44, eval_every=5),
)

ROWS = (
    _PRETRAIN,
    _PRETRAIN.derive(
        name="demo_finetune",
        description="The same at 36 px, 14 epochs of finetuning\n"
        "The demo's finetuning: demo_pretrain's model at 36 px, at two fifths of its learning rate.",
        model={"image_size": 36},
        optim={"lr": 2e-3},
        schedule={"epochs": 14, "warmup_epochs": 1},
        run={"eval_every": 2, "start": "weights"},
    ),
)
