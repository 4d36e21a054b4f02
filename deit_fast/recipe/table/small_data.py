"""Own images, from some hundred to some ten thousand: finetuning, a linear probe, and training from scratch.

No source has published these rows. Each row's description names the origin of its values: the published finetuning of
Vision Transformers (Dosovitskiy et al., arXiv:2010.11929, appendix B.1.1), the linear evaluation of DINO
(arXiv:2104.14294), or trials on subsets of CIFAR-10 (benchmarks/NOTES.md).

The number of classes is the data's. If the data have no validation split, a tenth of each class is held out. Training
continues while at most one image in twenty is unreadable; the default of one in a thousand would allow none of a few
hundred images.
"""

from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import Augment, Data, Loss, Mix, Model, Run, Schedule, SGDOptim

_DATA = Data(val_fraction=0.1, max_bad=0.05)
_RUN = Run(global_batch=64, start="weights", log_every=10, eval_every=5, keep_checkpoints=1)
_COMMON = """\
The number of classes is the data's, a tenth of each class is held out where there is no validation split, and a batch \
is smaller than 64 where there are fewer images."""

_FINETUNE = f"""\
Source: SGD with momentum 0.9, clipped at 1, with a cosine after warmup, as Vision Transformers are finetuned \
(arXiv:2010.11929, appendix B.1.1: 1e-3 to 3e-2 per 512 views). For few images: a batch of 64, crops of at least 35 \
% of the image and flips alone, label smoothing 0.1, no stochastic depth, and no moving average, whose memory would be \
longer than the run. Rate and augmentation are measured, on cuts of CIFAR-10 with a ViT of 0.8 M parameters \
(benchmarks/NOTES.md). The published weights were not tried.
The published weights' own finetuning (deit3_{{size}}_1k_{{resolution}}_ft: 1e-5 per 512 views) is of the classes that \
they know already.
Start: deit3_{{start}}, the published deit3_{{size}}_patch16, or any other weights of the architecture. {_COMMON}"""

_SMALL = Recipe(
    name="finetune_small",
    description="Own images: ViT-S/16 at 224 px, 50 epochs of finetuning\n"
    + _FINETUNE.format(size="small", resolution=384, start="small_1k_224"),
    model=Model(
        name="deit3_small_patch16", image_size=224, num_classes=None, drop_path=0.0, drop_path_mode="bernoulli"
    ),
    data=_DATA,
    augment=Augment(scale=(0.35, 1.0), policy="none", color_jitter=0.0),
    mix=Mix(mixup=0.0, cutmix=0.0),
    loss=Loss(name="cross_entropy", smoothing=0.1),
    optim=SGDOptim(lr=0.02, weight_decay=2e-5, ema_decay=None),
    schedule=Schedule(epochs=50, warmup_epochs=5, min_lr=1e-6),
    run=_RUN,
)

ROWS = (
    _SMALL,
    _SMALL.derive(
        name="finetune_base",
        description="Own images: ViT-B/16 at 224 px, 50 epochs of finetuning\n"
        + _FINETUNE.format(size="base", resolution=224, start="base_1k_192"),
        model={"name": "deit3_base_patch16"},
    ),
    _SMALL.derive(
        name="probe",
        description="Own images: a linear probe of ViT-S/16 at 224 px, 50 epochs\n"
        "Source: linear evaluation as of DINO (facebookresearch/dino, eval_linear.py: random crops and flips, no "
        "weight decay), with AdamW. The head alone is trained; the model runs as in evaluation, without stochastic "
        "depth.\n"
        "Start: deit3_small_1k_224, the published deit3_small_patch16, or any other weights of the architecture. "
        f"{_COMMON}",
        model={"train_mode": False},
        loss={"smoothing": 0.0},
        optim={"name": "adamw", "lr": 3e-3, "weight_decay": 0.0, "trainable": "head"},
        schedule={"warmup_epochs": 0},
    ),
    _SMALL.derive(
        name="scratch_small",
        description="Own images: ViT-S/16 at 224 px, 300 epochs from scratch\n"
        "Source: deit_small_1k_224's regularisation (arXiv:2012.12877: soft cross-entropy, smoothing 0.1, Mixup 0.8, "
        "CutMix 1.0, weight decay 0.05, 5e-4 per 512 views before warmup) with 3-Augment, LayerScale 1, the gradient "
        "clipped at 1 and no moving average. From few images alone a ViT learns little: finetune_small, from any "
        f"weights, is better. {_COMMON}",
        model={"layer_scale": 1.0, "drop_path": 0.1},
        augment={"scale": (0.2, 1.0), "policy": "three_augment", "color_jitter": 0.3},
        mix={"mixup": 0.8, "cutmix": 1.0},
        optim={"name": "adamw", "lr": 5e-4, "weight_decay": 0.05},
        schedule={"epochs": 300, "warmup_epochs": 10},
        run={"start": "scratch", "eval_every": 10},
    ),
)
