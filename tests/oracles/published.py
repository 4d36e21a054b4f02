"""The numbers of every published training, typed in by hand from the sources' commands and configs.

Nothing here is computed from the recipe table, or imported by it. A family consists of the values that all its rows
share, and of a text table of the others. A word is JSON where it parses. Columns have the short names of KEYS.
"""

import json
from typing import Any

KEYS = {
    "model": "model.name", "px": "model.image_size", "classes": "model.num_classes",
    "drop": "model.drop_path", "decay": "model.drop_path_decay", "gelu": "model.activation",
    "std": "model.init_std", "training": "model.train_mode",
    "repeats": "data.repeats", "layout": "data.layout", "ratio": "data.eval_crop_ratio",
    "crop": "augment.crop", "resize": "augment.interpolation", "policy": "augment.policy",
    "jitter": "augment.color_jitter", "erase": "augment.erase", "flip": "augment.flip",
    "mixup": "mix.mixup", "cutmix": "mix.cutmix", "group": "mix.group",
    "loss": "loss.name", "smooth": "loss.smoothing", "teacher": "distill.kind",
    "opt": "optim.name", "lr": "optim.lr", "wd": "optim.weight_decay", "clip": "optim.max_grad_norm",
    "ema": "optim.ema_decay", "qkv": "optim.split_qkv",
    "epochs": "schedule.epochs", "warmup": "schedule.warmup_epochs", "floor": "schedule.min_lr",
    "prefix": "schedule.warmup_prefix", "update": "schedule.update",
    "batch": "run.global_batch", "passes": "run.passes", "seed": "run.seed", "precision": "run.precision",
    "scale": "layer_scale",
}  # fmt: skip

EVERYWHERE = """
training true  resize bicubic  flip 0.5  std 0.02  gelu gelu  layout spread  teacher none  qkv false  classes 1000
"""
FACEBOOK = """
warmup 5  floor 1e-5  prefix false  update step  ema 0.99996  seed 0  passes 1  precision auto
"""
DEIT3 = FACEBOOK + "decay constant  scale 1e-4  ratio 1.0  erase 0.0"
DEIT = (
    FACEBOOK
    + """
decay linear  scale null  ratio 0.875  repeats 3  policy rand_augment  jitter 0.0  crop rrc  mixup 0.8  cutmix 1.0
loss cross_entropy  smooth 0.1  clip null
"""
)
JAX = """
warmup 5  floor 1e-5  prefix true  update step  ema null  passes 1  precision auto  decay constant  gelu gelu_tanh
cutmix 1.0
"""
JAX3 = JAX + "scale 1e-4  ratio 1.0  erase 0.0  seed 0"
JAX_LAMB = JAX3 + " opt lamb  clip 1.0  qkv true  policy three_augment  jitter 0.3  batch 2048  group 64"
JAX_21K = JAX_LAMB + " crop src  repeats 1  mixup 0.0  loss cross_entropy  smooth 0.1  wd 0.02"

FAMILIES: tuple[tuple[str, str], ...] = (
    (DEIT3 + """
     epochs 800  wd 0.05  opt lamb  clip 1.0  loss bce  smooth 0.0  mixup 0.8  cutmix 1.0  repeats 3
     policy three_augment  jitter 0.3  crop rrc  batch 2048""", """
     name                model                px   group  lr    drop
     deit3_small_1k_224  deit3_small_patch16  224  256    4e-3  0.05
     deit3_base_1k_192   deit3_base_patch16   192  256    3e-3  0.2
     deit3_large_1k_192  deit3_large_patch16  192  64     3e-3  0.45
     deit3_huge_1k_160   deit3_huge_patch14   160  64     3e-3  0.6"""),
    (DEIT3 + """
     epochs 20  lr 1e-5  wd 0.1  loss cross_entropy  smooth 0.1  mixup 0.8  cutmix 1.0  policy rand_augment  jitter 0.0
     crop rrc  batch 512""", """
     name                        model                px   group  drop  opt    clip  repeats
     deit3_base_1k_224_ft        deit3_base_patch16   224  64     0.2   adamw  null  1
     deit3_large_1k_224_ft       deit3_large_patch16  224  64     0.45  adamw  null  1
     deit3_huge_1k_224_ft        deit3_huge_patch14   224  32     0.55  adamw  null  1
     deit3_small_1k_384_ft       deit3_small_patch16  384  64     0.0   adamw  null  1
     deit3_base_1k_384_ft        deit3_base_patch16   384  32     0.15  adamw  null  1
     deit3_large_1k_384_ft       deit3_large_patch16  384  16     0.4   adamw  null  1
     deit3_small_1k_384_ft_lamb  deit3_small_patch16  384  64     0.0   lamb   1.0   3"""),
    (DEIT3 + """
     opt lamb  clip 1.0  wd 0.02  loss cross_entropy  smooth 0.1  mixup 0.0  cutmix 1.0  repeats 1
     policy three_augment  jitter 0.3  crop src  batch 2048""", """
     name                       model                px   epochs  group  lr    drop  classes
     deit3_small_21k_224        deit3_small_patch16  224  240     128    1e-3  0.05  null
     deit3_base_21k_224         deit3_base_patch16   224  240     64     1e-3  0.1   null
     deit3_large_21k_224        deit3_large_patch16  224  240     64     1e-3  0.3   null
     deit3_huge_21k_128         deit3_huge_patch14   128  90      64     1e-3  0.5   null
     deit3_small_21k_1k_224_ft  deit3_small_patch16  224  50      128    3e-4  0.05  1000
     deit3_base_21k_1k_224_ft   deit3_base_patch16   224  50      64     3e-4  0.15  1000
     deit3_large_21k_1k_224_ft  deit3_large_patch16  224  50      64     3e-4  0.4   1000
     deit3_huge_21k_1k_224_ft   deit3_huge_patch14   224  50      64     3e-4  0.45  1000"""),
    (DEIT + """
     px 224  epochs 300  batch 1024  lr 1e-3  wd 0.05  opt adamw  erase 0.25  drop 0.1""", """
     name                             model                        group  teacher
     deit_tiny_1k_224                 deit_tiny_patch16            256    none
     deit_small_1k_224                deit_small_patch16           256    none
     deit_base_1k_224                 deit_base_patch16            64     none
     deit_base_distilled_1k_224       deit_base_distilled_patch16  64     hard
     deit_base_distilled_1k_224_soft  deit_base_distilled_patch16  64     soft"""),
    (DEIT + "model deit_base_patch16  training false", """
     name                    px   epochs  batch  group  lr      wd    opt    drop  erase  floor  classes
     deit_base_1k_384_ft     384  30      512    32     5e-6    1e-8  adamw  0.1   0.25   5e-6   1000
     deit_base_cifar_224_ft  224  1000    768    96     0.01    1e-4  sgd    0.0   0.0    1e-5   null
     deit_base_cifar_384_ft  384  1000    768    96     0.01    1e-4  sgd    0.0   0.0    1e-5   null
     deit_base_inat_224_ft   224  360     768    96     7.5e-5  0.05  adamw  0.1   0.1    1e-5   null"""),
    (JAX + """
     px 224  epochs 300  batch 1024  group 32  lr 1e-3  wd 0.05  opt adamw  clip null  loss cross_entropy  smooth 0.1
     mixup 0.8  scale null  crop rrc  policy rand_augment  erase 0.25  repeats 3  layout together  jitter 0.0
     ratio 0.875""", """
     name                         model                drop  seed
     jax_deit_tiny_1k_224_300ep   deit3_tiny_patch16   0.0   0
     jax_deit_small_1k_224_300ep  deit3_small_patch16  0.0   0
     jax_deit_base_1k_224_300ep   deit3_base_patch16   0.05  1"""),
    (JAX_LAMB + " loss bce  smooth 0.0  mixup 0.8  crop rrc  repeats 3  layout together", """
     name                          model                px   epochs  lr    wd    drop
     jax_deit3_small_1k_224_400ep  deit3_small_patch16  224  400     4e-3  0.02  0.0
     jax_deit3_base_1k_192_400ep   deit3_base_patch16   192  400     3e-3  0.02  0.1
     jax_deit3_large_1k_192_400ep  deit3_large_patch16  192  400     3e-3  0.02  0.4
     jax_deit3_huge_1k_154_400ep   deit3_huge_patch14   154  400     3e-3  0.02  0.5
     jax_deit3_small_1k_224_800ep  deit3_small_patch16  224  800     4e-3  0.05  0.05
     jax_deit3_base_1k_192_800ep   deit3_base_patch16   192  800     3e-3  0.05  0.2
     jax_deit3_large_1k_192_800ep  deit3_large_patch16  192  800     3e-3  0.05  0.5
     jax_deit3_huge_1k_154_800ep   deit3_huge_patch14   154  800     3e-3  0.05  0.6"""),
    (JAX3 + """
     px 224  epochs 20  batch 512  group 16  lr 1e-5  wd 0.1  opt adamw  clip null  loss cross_entropy  smooth 0.1
     mixup 0.8  crop rrc  policy rand_augment  jitter 0.0  repeats 1""", """
     name                             model                drop
     jax_deit3_base_1k_224_ft_400ep   deit3_base_patch16   0.1
     jax_deit3_large_1k_224_ft_400ep  deit3_large_patch16  0.4
     jax_deit3_huge_1k_224_ft_400ep   deit3_huge_patch14   0.5
     jax_deit3_base_1k_224_ft_800ep   deit3_base_patch16   0.2
     jax_deit3_large_1k_224_ft_800ep  deit3_large_patch16  0.5
     jax_deit3_huge_1k_224_ft_800ep   deit3_huge_patch14   0.6"""),
    (JAX_21K, """
     name                                 model                px   epochs  lr    drop  classes  passes  group
     jax_deit3_small_21k_224_90ep         deit3_small_patch16  224  90      3e-3  0.05  null     1       64
     jax_deit3_base_21k_224_90ep          deit3_base_patch16   224  90      3e-3  0.1   null     1       64
     jax_deit3_large_21k_224_90ep         deit3_large_patch16  224  90      3e-3  0.3   null     1       64
     jax_deit3_huge_21k_126_90ep          deit3_huge_patch14   126  90      3e-3  0.5   null     1       64
     jax_deit3_small_21k_224_240ep        deit3_small_patch16  224  240     3e-3  0.05  null     1       64
     jax_deit3_base_21k_224_240ep         deit3_base_patch16   224  240     3e-3  0.1   null     1       64
     jax_deit3_large_21k_224_240ep        deit3_large_patch16  224  240     3e-3  0.3   null     1       64
     jax_deit3_huge_21k_126_240ep         deit3_huge_patch14   126  240     3e-3  0.5   null     1       64
     jax_deit3_small_21k_1k_224_ft_90ep   deit3_small_patch16  224  50      3e-4  0.05  1000     1       64
     jax_deit3_base_21k_1k_224_ft_90ep    deit3_base_patch16   224  50      3e-4  0.1   1000     1       64
     jax_deit3_large_21k_1k_224_ft_90ep   deit3_large_patch16  224  50      3e-4  0.3   1000     1       64
     jax_deit3_huge_21k_1k_224_ft_90ep    deit3_huge_patch14   224  50      3e-4  0.45  1000     2       32
     jax_deit3_small_21k_1k_224_ft_240ep  deit3_small_patch16  224  50      3e-4  0.05  1000     1       64
     jax_deit3_base_21k_1k_224_ft_240ep   deit3_base_patch16   224  50      3e-4  0.1   1000     1       64
     jax_deit3_large_21k_1k_224_ft_240ep  deit3_large_patch16  224  50      3e-4  0.3   1000     1       64
     jax_deit3_huge_21k_1k_224_ft_240ep   deit3_huge_patch14   224  50      3e-4  0.45  1000     2       32"""),
    (DEIT + """
     model deit_base_patch16  px 224  epochs 300  batch 1024  lr 1e-3  wd 0.05  opt adamw  drop 0.1  erase 0.25
     ema null  crop rrc_linear  std 0.002  update epoch""", """
     name                                 group  passes  seed  precision
     passl_deit_base_1k_224_1n8c_fp32     128    2       2021  fp32
     passl_deit_base_1k_224_1n8c_fp16o2   128    1       42    auto
     passl_deit_base_1k_224_2n16c_fp16o2  64     1       2021  auto"""),
    (DEIT + """
     px 224  epochs 300  batch 1024  lr 1e-3  wd 0.05  opt adamw  clip 5.0  erase 0.25  repeats 1  warmup 20
     prefix true  update epoch_after_warmup  precision fp32""", """
     name                          model               group  drop  ema
     mmpretrain_deit_tiny_1k_224   deit_tiny_patch16   256    0.0   null
     mmpretrain_deit_small_1k_224  deit_small_patch16  256    0.0   null
     mmpretrain_deit_base_1k_224   deit_base_patch16   64     0.1   0.99996"""),
)  # fmt: skip


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word


def _pairs(text: str) -> dict[str, Any]:
    words = text.split()
    return {KEYS[key]: _value(word) for key, word in zip(words[::2], words[1::2], strict=True)}


def published_numbers() -> dict[str, dict[str, Any]]:
    """Recipe name -> dotted key -> value; `layer_scale` is the resolved one. Every row has every key of KEYS."""
    rows = {}
    for shared, table in FAMILIES:
        (_, *columns), *lines = (line.split() for line in table.strip().splitlines())
        for name, *words in lines:
            assert len(words) == len(columns), name
            own = {KEYS[column]: _value(word) for column, word in zip(columns, words, strict=True)}
            rows[name] = {**_pairs(EVERYWHERE), **_pairs(shared), **own}
            assert rows[name].keys() == set(KEYS.values()), f"{name}: {set(KEYS.values()) - rows[name].keys()}"
    return rows
