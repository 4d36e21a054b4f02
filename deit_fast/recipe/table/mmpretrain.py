"""DeiT of open-mmlab/mmpretrain: the three configs of configs/deit that can be trained.

Its distilled, 384 px and DeiT III configs are for inference only (their epochs and rates are placeholders): no rows.
"""

from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import AdamWOptim, Augment, Data, Loss, Mix, Model, Run, Schedule
from deit_fast.recipe.table.notes import STOCHASTIC_DEPTH

_DESCRIPTION = """\
DeiT-{size} at 224 px, 300 epochs on ImageNet-1k: {top1} %
Source: open-mmlab/mmpretrain, configs/deit/deit-{model}_{layout}_in1k.py.
As the reference's DeiT but for: no repeated augmentation; 20 epochs of warmup step by step, then a cosine that is set \
once per epoch (schedule.update=step); gradients clipped to a norm of 5; {rest}.
fp32, as without the source's --amp; run.precision=auto is bf16, and faster. The source draws no seed; here it is 0.
Not as there: the initial weights (its MLP starts from Xavier's, its head and class token from zeros); Mixup's and \
CutMix's partner, there of a permutation; erasing, there before normalisation with the same noise cut off at black and \
white; the last batch of an epoch, which is short and left out here{stochastic_depth}.
Budget of the source: {gpus} GPUs x {per_gpu} views."""


def _row(
    size: str, model: str, gpus: int, per_gpu: int, drop_path: float, ema_decay: float | None, top1: float
) -> Recipe:
    rest = (
        "a moving average that is evaluated (EMAHook, momentum 4e-5)"
        if ema_decay
        else "no stochastic depth and no moving average"
    )
    return Recipe(
        name=f"mmpretrain_deit_{model}_1k_224",
        description=_DESCRIPTION.format(
            size=size,
            model=model,
            layout=f"{gpus}xb{per_gpu}",
            rest=rest,
            gpus=gpus,
            per_gpu=per_gpu,
            top1=top1,
            stochastic_depth=f"; {STOCHASTIC_DEPTH}" if drop_path else "",
        ),
        model=Model(name=f"deit_{model}_patch16", image_size=224, drop_path=drop_path, drop_path_decay="linear"),
        data=Data(eval_crop_ratio=0.875),
        augment=Augment(crop="rrc", policy="rand_augment", color_jitter=0.0, erase=0.25),
        mix=Mix(mixup=0.8, cutmix=1.0, group=per_gpu),
        loss=Loss(name="cross_entropy", smoothing=0.1),
        optim=AdamWOptim(lr=1e-3, weight_decay=0.05, max_grad_norm=5.0, ema_decay=ema_decay),
        schedule=Schedule(epochs=300, warmup_epochs=20, warmup_prefix=True, update="epoch_after_warmup"),
        run=Run(global_batch=gpus * per_gpu, precision="fp32"),
    )


ROWS = (
    # size, model, GPUs, views per GPU, drop path, ema decay, top-1
    _row("Ti", "tiny", 4, 256, 0.0, None, 74.5),
    _row("S", "small", 4, 256, 0.0, None, 80.69),
    _row("B", "base", 16, 64, 0.1, 0.99996, 81.76),
)
