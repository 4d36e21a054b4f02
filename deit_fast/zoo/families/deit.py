"""DeiT: facebookresearch/deit models.py, arXiv:2012.12877. It has no LayerScale."""

from functools import partial

from deit_fast.zoo.family import DISTILLED, DISTILLED_LONGER, IN_1K, UNKNOWN, Architecture, Family, published_rows

_entry = partial(Architecture, family="deit", layer_scale=None)
_rows = partial(published_rows, "README_deit.md")

FAMILY = Family(
    position=1,
    architectures={
        "deit_tiny_patch16": _entry(192, 12, 3, 16),
        "deit_small_patch16": _entry(384, 12, 6, 16),
        "deit_base_patch16": _entry(768, 12, 12, 16),
        "deit_tiny_distilled_patch16": _entry(192, 12, 3, 16, distilled=True),
        "deit_small_distilled_patch16": _entry(384, 12, 6, 16, distilled=True),
        "deit_base_distilled_patch16": _entry(768, 12, 12, 16, distilled=True),
    },
    aliases={
        "deit_tiny_patch16_224": ("deit_tiny_patch16", 224),
        "deit_small_patch16_224": ("deit_small_patch16", 224),
        "deit_base_patch16_224": ("deit_base_patch16", 224),
        "deit_base_patch16_384": ("deit_base_patch16", 384),
        "deit_tiny_distilled_patch16_224": ("deit_tiny_distilled_patch16", 224),
        "deit_small_distilled_patch16_224": ("deit_small_distilled_patch16", 224),
        "deit_base_distilled_patch16_224": ("deit_base_distilled_patch16", 224),
        "deit_base_distilled_patch16_384": ("deit_base_distilled_patch16", 384),
    },
    published=[
        *_rows("deit_tiny_patch16", 224, (5.717, 1.25), UNKNOWN,
               (IN_1K, 72.2, None, "deit_tiny_patch16_224-a1311bcf.pth")),
        *_rows("deit_small_patch16", 224, (22.051, 4.60), UNKNOWN,
               (IN_1K, 79.9, None, "deit_small_patch16_224-cd65a155.pth")),
        *_rows("deit_base_patch16", 224, (86.568, 17.56), UNKNOWN,
               (IN_1K, 81.8, None, "deit_base_patch16_224-b5f2ef4d.pth")),
        *_rows("deit_base_patch16", 384, (86.859, 55.48), UNKNOWN,
               (IN_1K, 82.9, None, "deit_base_patch16_384-8de9b5d1.pth")),
        *_rows("deit_tiny_distilled_patch16", 224, (5.911, 1.26), UNKNOWN,
               (DISTILLED, 74.5, None, "deit_tiny_distilled_patch16_224-b40b3cf7.pth")),
        *_rows("deit_small_distilled_patch16", 224, (22.436, 4.62), UNKNOWN,
               (DISTILLED, 81.2, None, "deit_small_distilled_patch16_224-649709d9.pth")),
        *_rows("deit_base_distilled_patch16", 224, (87.338, 17.66), UNKNOWN,
               (DISTILLED, 83.4, None, "deit_base_distilled_patch16_224-df68dfff.pth")),
        *_rows("deit_base_distilled_patch16", 384, (87.630, 55.59), UNKNOWN,
               (DISTILLED_LONGER, 85.2, None, "deit_base_distilled_patch16_384-d0272ac0.pth")),
    ],
    weights_names={  # open-mmlab/mmpretrain configs/deit/metafile.yml, "Converted From"
        "deit-tiny-distilled_3rdparty_pt-4xb256_in1k": "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
        "deit-small-distilled_3rdparty_pt-4xb256_in1k": "deit_small_distilled_patch16_224-649709d9.pth",
        "deit-base_3rdparty_pt-16xb64_in1k": "deit_base_patch16_224-b5f2ef4d.pth",
        "deit-base-distilled_3rdparty_pt-16xb64_in1k": "deit_base_distilled_patch16_224-df68dfff.pth",
        "deit-base_3rdparty_ft-16xb32_in1k-384px": "deit_base_patch16_384-8de9b5d1.pth",
        "deit-base-distilled_3rdparty_ft-16xb32_in1k-384px": "deit_base_distilled_patch16_384-d0272ac0.pth",
    },
    toys={
        "deit": _entry(32, 3, 2, 8),
        "distilled": _entry(32, 3, 2, 8, distilled=True),
    },
    is_vit=True,
    class_slot=True,
    transformers=("vit", "deit", "vit_msn"),
    eval_crop_ratio=0.875,
)  # fmt: skip
