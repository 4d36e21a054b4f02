"""DeiT III (facebookresearch/deit models_v2.py, arXiv:2204.07118), with the models of Three things (arXiv:2203.09795).

Their position embedding has no slot for the class token. Their branches have LayerScale unless an entry says otherwise.
"""

from functools import partial

from deit_fast.zoo.family import IN_1K, IN_21K, UNKNOWN, Architecture, Family, Published, published_rows

_entry = partial(Architecture, family="deit3")
_rows = partial(published_rows, "README_revenge.md")

# mmpretrain's DeiT III models, which timm has too. Their names contain the same facts as the reference's files: size,
# patch, whether 384 px.
_MMPRETRAIN = (("small", 16, 224), ("small", 16, 384), ("medium", 16, 224), ("base", 16, 224), ("base", 16, 384),
               ("large", 16, 224), ("large", 16, 384), ("huge", 14, 224))  # fmt: skip


def _file(size: str, resolution: int, data: str) -> str:
    return f"deit_3_{size}_{resolution}_{data}{'_v1' if (size, data) == ('huge', '21k') else ''}.pth"


FAMILY = Family(
    position=0,
    architectures={
        "deit3_tiny_patch16": _entry(192, 12, 3, 16),
        "deit3_small_patch16": _entry(384, 12, 6, 16),
        "deit3_medium_patch16": _entry(512, 12, 8, 16),
        "deit3_base_patch16": _entry(768, 12, 12, 16),
        "deit3_large_patch16": _entry(1024, 24, 16, 16),
        "deit3_huge_patch14": _entry(1280, 32, 16, 14),
        "deit3_huge_52_patch14": _entry(1280, 52, 16, 14),
        "deit3_huge_26x2_patch14": _entry(1280, 26, 16, 14, parallel=2),
        "deit3_giant_40_patch14": _entry(1408, 40, 16, 14),
        "deit3_giant_40x2_patch14": _entry(1408, 40, 16, 14, parallel=2),
        "deit3_giant_48_patch14": _entry(1664, 48, 16, 14),
        "deit3_giant_48x2_patch14": _entry(1664, 48, 16, 14, parallel=2),
        # Three things everyone should know about ViTs: deep or parallel, with LayerScale or without.
        "deit3_small_36_patch16": _entry(384, 36, 6, 16),
        "deit3_small_36_patch16_unscaled": _entry(384, 36, 6, 16, layer_scale=None),
        "deit3_small_18x2_patch16": _entry(384, 18, 6, 16, parallel=2),
        "deit3_small_18x2_patch16_unscaled": _entry(384, 18, 6, 16, layer_scale=None, parallel=2),
        "deit3_base_36_patch16": _entry(768, 36, 12, 16),
        "deit3_base_36_patch16_unscaled": _entry(768, 36, 12, 16, layer_scale=None),
        "deit3_base_18x2_patch16": _entry(768, 18, 12, 16, parallel=2),
        "deit3_base_18x2_patch16_unscaled": _entry(768, 18, 12, 16, layer_scale=None, parallel=2),
        # These models can learn 8 x 8 digits or CIFAR-10 on two cores; the smallest published model has 5.7 M
        # parameters.
        "deit3_nano_patch4": _entry(128, 4, 4, 4),
        "deit3_nano_patch8": _entry(128, 4, 4, 8),
    },
    aliases={
        "deit3_small_patch16_224": ("deit3_small_patch16", 224),
        "deit3_small_patch16_384": ("deit3_small_patch16", 384),
        "deit3_medium_patch16_224": ("deit3_medium_patch16", 224),
        "deit3_base_patch16_224": ("deit3_base_patch16", 224),
        "deit3_base_patch16_384": ("deit3_base_patch16", 384),
        "deit3_large_patch16_224": ("deit3_large_patch16", 224),
        "deit3_large_patch16_384": ("deit3_large_patch16", 384),
        "deit3_huge_patch14_224": ("deit3_huge_patch14", 224),
        "deit_tiny_patch16_LS": ("deit3_tiny_patch16", 224),
        "deit_small_patch16_LS": ("deit3_small_patch16", 224),
        "deit_medium_patch16_LS": ("deit3_medium_patch16", 224),
        "deit_base_patch16_LS": ("deit3_base_patch16", 224),
        "deit_large_patch16_LS": ("deit3_large_patch16", 224),
        "deit_huge_patch14_LS": ("deit3_huge_patch14", 224),
        "deit_huge_patch14_52_LS": ("deit3_huge_52_patch14", 224),
        "deit_huge_patch14_26x2_LS": ("deit3_huge_26x2_patch14", 224),
        "deit_giant_40_patch14_LS": ("deit3_giant_40_patch14", 224),
        "deit_giant_40x2_patch14_LS": ("deit3_giant_40x2_patch14", 224),
        "deit_Giant_48_patch14_LS": ("deit3_giant_48_patch14", 224),
        "deit_Giant_48x2_patch14_LS": ("deit3_giant_48x2_patch14", 224),
        "deit_small_patch16_36_LS": ("deit3_small_36_patch16", 224),
        "deit_small_patch16_36": ("deit3_small_36_patch16_unscaled", 224),
        "deit_small_patch16_18x2_LS": ("deit3_small_18x2_patch16", 224),
        "deit_small_patch16_18x2": ("deit3_small_18x2_patch16_unscaled", 224),
        "deit_base_patch16_36x1_LS": ("deit3_base_36_patch16", 224),
        "deit_base_patch16_36x1": ("deit3_base_36_patch16_unscaled", 224),
        "deit_base_patch16_18x2_LS": ("deit3_base_18x2_patch16", 224),
        "deit_base_patch16_18x2": ("deit3_base_18x2_patch16_unscaled", 224),
    },
    published=[
        Published("deit3_tiny_patch16", 224, 5.72, 1.25),
        *_rows("deit3_small_patch16", 224, (22.06, 4.60), (1891, 987),
               (IN_1K, 81.4, 70.5, "deit_3_small_224_1k.pth"), (IN_21K, 83.1, 73.8, "deit_3_small_224_21k.pth")),
        *_rows("deit3_small_patch16", 384, (22.21, 15.49), (424, 4569),
               (IN_1K, 83.4, 73.1, "deit_3_small_384_1k.pth"), (IN_21K, 84.8, 75.1, "deit_3_small_384_21k.pth")),
        *_rows("deit3_medium_patch16", 224, (38.85, 7.99), UNKNOWN,
               (IN_1K, 83.0, 72.3, "deit_3_medium_224_1k.pth"), (IN_21K, 84.5, 74.7, "deit_3_medium_224_21k.pth")),
        *_rows("deit3_base_patch16", 224, (86.59, 17.56), (831, 2078),
               (IN_1K, 83.8, 73.6, "deit_3_base_224_1k.pth"), (IN_21K, 85.7, 76.5, "deit_3_base_224_21k.pth")),
        *_rows("deit3_base_patch16", 384, (86.88, 55.48), (190, 8956),
               (IN_1K, 85.0, 74.8, "deit_3_base_384_1k.pth"), (IN_21K, 86.7, 77.9, "deit_3_base_384_21k.pth")),
        *_rows("deit3_large_patch16", 224, (304.37, 61.55), (277, 3789),
               (IN_1K, 84.9, 75.1, "deit_3_large_224_1k.pth"), (IN_21K, 87.0, 78.6, "deit_3_large_224_21k.pth")),
        *_rows("deit3_large_patch16", 384, (304.76, 191.07), (67, 12866),
               (IN_1K, 85.8, 76.7, "deit_3_large_384_1k.pth"), (IN_21K, 87.7, 79.1, "deit_3_large_384_21k.pth")),
        *_rows("deit3_huge_patch14", 224, (632.13, 167.30), (112, 6984),
               (IN_1K, 85.2, 75.9, "deit_3_huge_224_1k.pth"), (IN_21K, 87.2, 79.2, "deit_3_huge_224_21k_v1.pth")),
        Published("deit3_huge_52_patch14", 224, 1025.73, 271.73),
        Published("deit3_huge_26x2_patch14", 224, 1025.73, 271.73),
        Published("deit3_giant_40_patch14", 224, 955.03, 252.21),
        Published("deit3_giant_40x2_patch14", 224, 1907.46, 504.21),
        Published("deit3_giant_48_patch14", 224, 1599.16, 420.69),
        Published("deit3_giant_48x2_patch14", 224, 3195.24, 841.12),
        Published("deit3_small_36_patch16", 224, 64.67, 13.68),
        Published("deit3_small_36_patch16_unscaled", 224, 64.64, 13.68),
        Published("deit3_small_18x2_patch16", 224, 64.67, 13.68),
        Published("deit3_small_18x2_patch16_unscaled", 224, 64.64, 13.68),
        Published("deit3_base_36_patch16", 224, 256.73, 52.46),
        Published("deit3_base_36_patch16_unscaled", 224, 256.68, 52.46),
        Published("deit3_base_18x2_patch16", 224, 256.73, 52.46),
        Published("deit3_base_18x2_patch16_unscaled", 224, 256.68, 52.46),
    ],
    # open-mmlab/mmpretrain configs/deit3/metafile.yml, "Converted From", which for the last one names the wrong file.
    # timm's names of before 0.9 are those that its deit.py still takes.
    weights_names={
        f"deit3-{size}-p{patch}{before}_3rdparty_in1k{'-384px' if px == 384 else ''}": _file(size, px, data)
        for size, patch, px in _MMPRETRAIN
        for before, data in (("", "1k"), ("_in21k-pre", "21k"))
    } | {f"deit3_{size}_patch{patch}_{px}_in21ft1k": _file(size, px, "21k") for size, patch, px in _MMPRETRAIN},
    toys={
        "deit3": _entry(32, 3, 2, 8),
        "parallel": _entry(32, 2, 2, 8, parallel=2),
    },
    is_vit=True,
)  # fmt: skip
