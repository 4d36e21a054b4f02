"""DeiT-B of PaddlePaddle/PASSL, tasks/classification/deit: one row per published config."""

from typing import Literal

from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import AdamWOptim, Augment, Data, Loss, Mix, Model, Run, Schedule
from deit_fast.recipe.table.notes import STOCHASTIC_DEPTH

_DESCRIPTION = """\
DeiT-B at 224 px, 300 epochs, {layout} {precision}: {top1} %
Source: PaddlePaddle/PASSL, tasks/classification/deit/configs/DeiT_base_patch16_224_in1k_{layout}_dp_{precision}.yaml.
As deit_base_1k_224 but for: initialisation with a standard deviation of 0.002 (model.init_std=0.02 is everybody \
else's); crops whose aspect ratio is uniform and whose area always fits (augment.crop=rrc is timm's); Mixup or CutMix \
with even odds, a draw per process; the rate is set at the start of each epoch (schedule.update=step); no moving \
average.
Here: {bf16}biases are never decayed, as in one of the three configs only (the fp16 one of one node); \
{stochastic_depth}.{passes}
Budget of the source: {gpus} A100 x {per_gpu} views, {speed} images/s."""
_PASSES = " The source mixes a process's batch and then splits it into two passes."


def _row(
    layout: str,
    source_precision: str,
    precision: Literal["auto", "fp32"],
    gpus: int,
    per_gpu: int,
    accumulation: int,
    seed: int,
    speed: int,
    top1: float,
) -> Recipe:
    return Recipe(
        name=f"passl_deit_base_1k_224_{layout}_{source_precision}",
        description=_DESCRIPTION.format(
            layout=layout,
            precision=source_precision,
            top1=top1,
            bf16="" if precision == "fp32" else "bf16 instead of fp16 with master weights; ",
            stochastic_depth=STOCHASTIC_DEPTH,
            passes=_PASSES if accumulation > 1 else "",
            gpus=gpus,
            per_gpu=per_gpu,
            speed=speed,
        ),
        model=Model(name="deit_base_patch16", image_size=224, drop_path=0.1, drop_path_decay="linear", init_std=0.002),
        data=Data(repeats=3, eval_crop_ratio=0.875),
        augment=Augment(crop="rrc_linear", policy="rand_augment", color_jitter=0.0, erase=0.25),
        mix=Mix(mixup=0.8, cutmix=1.0, group=per_gpu),
        loss=Loss(name="cross_entropy", smoothing=0.1),
        optim=AdamWOptim(lr=1e-3, weight_decay=0.05, max_grad_norm=None, ema_decay=None),
        schedule=Schedule(epochs=300, update="epoch"),
        run=Run(
            global_batch=gpus * per_gpu,
            accumulation=accumulation if accumulation > 1 else "auto",
            seed=seed,
            precision=precision,
        ),
    )


ROWS = (
    # nodes and cards, precision, here, GPUs, views per GPU, accumulation, seed, images/s, top-1
    _row("1n8c", "fp32", "fp32", 8, 128, 2, 2021, 2780, 81.87),
    _row("1n8c", "fp16o2", "auto", 8, 128, 1, 42, 3169, 82.098),
    _row("2n16c", "fp16o2", "auto", 16, 64, 1, 2021, 6514, 81.831),
)
