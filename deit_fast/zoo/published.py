"""What was published of the zoo's models: sizes, speed, accuracy, and where the weights are.

Parameters and multiply-accumulates (which the papers call FLOPs) are counted, the latter in convolutions and matrix
products, and tests/zoo/test_zoo.py counts them again, and compares them with what facebookresearch/deit's tables print.
All other figures are those tables' (`Published.source`): None is what they do not say. Addresses that they lack
(CaiT-XXS, ResMLP without distillation) are timm's. Speed and memory are the authors', on their machines.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from deit_fast.zoo.architectures import ARCHITECTURES

_URL = "https://dl.fbaipublicfiles.com/deit/"


@dataclass(frozen=True)
class Published:
    """One row of the zoo: an entry at a resolution, and one set of weights, if there is any."""

    name: str
    resolution: int
    params_m: float
    """Millions of parameters, with 1,000 classes."""
    gmacs: float
    """Billions of multiply-accumulates per image."""
    images_per_second: int | None = None
    peak_memory_mb: int | None = None
    top1: float | None = None
    """ImageNet validation accuracy, %."""
    top1_v2: float | None = None
    """ImageNet V2 accuracy, %."""
    training: str | None = None
    """What the weights were trained on and how; None: there are none."""
    weights: str | None = None
    """Address of the weights."""

    @property
    def source(self) -> str | None:
        """Where accuracy, speed, memory and address are from; None where the code alone is published."""
        if self.weights is None:
            return None
        if self.top1 is None and self.training != "DINO":
            return "timm"
        return f"facebookresearch/deit {_README[ARCHITECTURES[self.name].family]}"


_README = {
    "deit3": "README_revenge.md",
    "deit": "README_deit.md",
    "cait": "README_cait.md",
    "resmlp": "README_resmlp.md",
    "patchconvnet": "README_patchconvnet.md",
}


def _published(name: str, resolution: int, sizes: tuple[float, float], speed: tuple[int | None, int | None],
               *weights: tuple[str, float | None, float | None, str]) -> Iterable[Published]:  # fmt: skip
    """A row for each of (training, top-1, top-1 V2, file)."""
    for training, top1, top1_v2, file in weights:
        yield Published(name, resolution, *sizes, *speed, top1, top1_v2, training, _URL + file)


_1K, _21K, _DISTILLED = "ImageNet-1k", "ImageNet-21k, ImageNet-1k", "ImageNet-1k, distilled"
_UNKNOWN = (None, None)

PUBLISHED: list[Published] = [
    Published("deit3_tiny_patch16", 224, 5.72, 1.25),
    *_published("deit3_small_patch16", 224, (22.06, 4.60), (1891, 987),
                (_1K, 81.4, 70.5, "deit_3_small_224_1k.pth"), (_21K, 83.1, 73.8, "deit_3_small_224_21k.pth")),
    *_published("deit3_small_patch16", 384, (22.21, 15.49), (424, 4569),
                (_1K, 83.4, 73.1, "deit_3_small_384_1k.pth"), (_21K, 84.8, 75.1, "deit_3_small_384_21k.pth")),
    *_published("deit3_medium_patch16", 224, (38.85, 7.99), _UNKNOWN,
                (_1K, 83.0, 72.3, "deit_3_medium_224_1k.pth"), (_21K, 84.5, 74.7, "deit_3_medium_224_21k.pth")),
    *_published("deit3_base_patch16", 224, (86.59, 17.56), (831, 2078),
                (_1K, 83.8, 73.6, "deit_3_base_224_1k.pth"), (_21K, 85.7, 76.5, "deit_3_base_224_21k.pth")),
    *_published("deit3_base_patch16", 384, (86.88, 55.48), (190, 8956),
                (_1K, 85.0, 74.8, "deit_3_base_384_1k.pth"), (_21K, 86.7, 77.9, "deit_3_base_384_21k.pth")),
    *_published("deit3_large_patch16", 224, (304.37, 61.55), (277, 3789),
                (_1K, 84.9, 75.1, "deit_3_large_224_1k.pth"), (_21K, 87.0, 78.6, "deit_3_large_224_21k.pth")),
    *_published("deit3_large_patch16", 384, (304.76, 191.07), (67, 12866),
                (_1K, 85.8, 76.7, "deit_3_large_384_1k.pth"), (_21K, 87.7, 79.1, "deit_3_large_384_21k.pth")),
    *_published("deit3_huge_patch14", 224, (632.13, 167.30), (112, 6984),
                (_1K, 85.2, 75.9, "deit_3_huge_224_1k.pth"), (_21K, 87.2, 79.2, "deit_3_huge_224_21k_v1.pth")),
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
    *_published("deit_tiny_patch16", 224, (5.717, 1.25), _UNKNOWN,
                (_1K, 72.2, None, "deit_tiny_patch16_224-a1311bcf.pth")),
    *_published("deit_small_patch16", 224, (22.051, 4.60), _UNKNOWN,
                (_1K, 79.9, None, "deit_small_patch16_224-cd65a155.pth")),
    *_published("deit_base_patch16", 224, (86.568, 17.56), _UNKNOWN,
                (_1K, 81.8, None, "deit_base_patch16_224-b5f2ef4d.pth")),
    *_published("deit_base_patch16", 384, (86.859, 55.48), _UNKNOWN,
                (_1K, 82.9, None, "deit_base_patch16_384-8de9b5d1.pth")),
    *_published("deit_tiny_distilled_patch16", 224, (5.911, 1.26), _UNKNOWN,
                (_DISTILLED, 74.5, None, "deit_tiny_distilled_patch16_224-b40b3cf7.pth")),
    *_published("deit_small_distilled_patch16", 224, (22.436, 4.62), _UNKNOWN,
                (_DISTILLED, 81.2, None, "deit_small_distilled_patch16_224-649709d9.pth")),
    *_published("deit_base_distilled_patch16", 224, (87.338, 17.66), _UNKNOWN,
                (_DISTILLED, 83.4, None, "deit_base_distilled_patch16_224-df68dfff.pth")),
    *_published("deit_base_distilled_patch16", 384, (87.630, 55.59), _UNKNOWN,
                ("ImageNet-1k, distilled, 1000 epochs", 85.2, None, "deit_base_distilled_patch16_384-d0272ac0.pth")),
    *_published("cait_xxs24", 224, (11.96, 2.52), _UNKNOWN, (_DISTILLED, None, None, "XXS24_224.pth")),
    *_published("cait_xxs24", 384, (12.03, 9.60), _UNKNOWN, (_DISTILLED, None, None, "XXS24_384.pth")),
    *_published("cait_xxs36", 224, (17.30, 3.76), _UNKNOWN, (_DISTILLED, None, None, "XXS36_224.pth")),
    *_published("cait_xxs36", 384, (17.37, 14.31), _UNKNOWN, (_DISTILLED, None, None, "XXS36_384.pth")),
    *_published("cait_xs24", 384, (26.67, 19.24), _UNKNOWN, (_DISTILLED, 84.1, None, "XS24_384.pth")),
    *_published("cait_s24", 224, (46.92, 9.33), _UNKNOWN, (_DISTILLED, 83.5, None, "S24_224.pth")),
    *_published("cait_s24", 384, (47.06, 32.11), _UNKNOWN, (_DISTILLED, 85.1, None, "S24_384.pth")),
    *_published("cait_s36", 384, (68.37, 47.91), _UNKNOWN, (_DISTILLED, 85.4, None, "S36_384.pth")),
    *_published("cait_m36", 384, (271.22, 172.94), _UNKNOWN, (_DISTILLED, 86.1, None, "M36_384.pth")),
    *_published("cait_m48", 448, (356.46, 329.11), _UNKNOWN, (_DISTILLED, 86.5, None, "M48_448.pth")),
    *_published("resmlp_12", 224, (15.35, 3.01), _UNKNOWN, (_1K, None, None, "resmlp_12_no_dist.pth"),
                (_DISTILLED, 77.8, None, "resmlp_12_dist.pth"), ("DINO", None, None, "resmlp_12_dino.pth")),
    *_published("resmlp_24", 224, (30.02, 5.96), _UNKNOWN, (_1K, None, None, "resmlp_24_no_dist.pth"),
                (_DISTILLED, 80.8, None, "resmlp_24_dist.pth"), ("DINO", None, None, "resmlp_24_dino.pth")),
    *_published("resmlp_36", 224, (44.69, 8.91), _UNKNOWN, (_1K, None, None, "resmlp_36_no_dist.pth"),
                (_DISTILLED, 81.1, None, "resmlp_36_dist.pth")),
    *_published("resmlp_big_24", 224, (129.14, 100.23), _UNKNOWN, (_1K, None, None, "resmlpB_24_no_dist.pth"),
                (_DISTILLED, 83.6, None, "resmlpB_24_dist.pth"), (_21K, 84.4, None, "resmlpB_24_22k.pth")),
    *_published("patchconvnet_s60", 224, (25.23, 3.98), (1129, 1322),
                (_1K, 82.1, None, "s60_224_1k.pth"), (_21K, 83.5, None, "s60_224_21k.pth")),
    *_published("patchconvnet_s60", 384, (25.23, 11.68), (388, 3604), (_21K, 84.9, None, "s60_384_21k.pth")),
    *_published("patchconvnet_s60", 512, (25.23, 20.76), (216, 6296), (_21K, 85.4, None, "s60_512_21k.pth")),
    *_published("patchconvnet_s120", 224, (47.72, 7.49), (580, 1450), (_1K, 83.2, None, "s120_224_1k.pth")),
    *_published("patchconvnet_b60", 224, (99.39, 15.80), (541, 2790),
                (_1K, 83.5, None, "b60_224_1k.pth"), (_21K, 85.4, None, "b60_224_21k.pth")),
    *_published("patchconvnet_b60", 384, (99.39, 46.39), (185, 7067), (_21K, 86.5, None, "b60_384_21k.pth")),
    *_published("patchconvnet_b120", 224, (188.61, 29.77), (280, 3314),
                (_1K, 84.1, None, "b120_224_1k.pth"), (_21K, 86.0, None, "b120_224_21k.pth")),
    *_published("patchconvnet_b120", 384, (188.61, 87.42), (96, 7587), (_21K, 86.9, None, "b120_384_21k.pth")),
    Published("patchconvnet_l60", 224, 176.01, 28.04),
    Published("patchconvnet_l120", 224, 334.29, 52.85),
    *_published("patchconvnet_s60_multi", 224, (25.61, 5.31), _UNKNOWN,
                (_1K, 81.1, None, "s60_multi_scratch_1k.pth"),
                ("ImageNet-1k, from S60", 82.0, None, "s60_multi_finetune_1k.pth")),
]  # fmt: skip


def find_published(names: Iterable[str]) -> list[Published]:
    """Rows of the entries `names`, in the order of the model table."""
    chosen, order = set(names), list(ARCHITECTURES)
    return sorted((row for row in PUBLISHED if row.name in chosen), key=lambda row: order.index(row.name))
