"""PatchConvNet: facebookresearch/deit patchconvnet_models.py, arXiv:2112.13692. Heads are the aggregation layer's."""

from functools import partial

from deit_fast.zoo.family import FROM_S60, IN_1K, IN_21K, UNKNOWN, Architecture, Family, Published, published_rows

_entry = partial(Architecture, family="patchconvnet")
_rows = partial(published_rows, "README_patchconvnet.md")

FAMILY = Family(
    position=4,
    architectures={
        "patchconvnet_s60": _entry(384, 60, 1, 16),
        "patchconvnet_s120": _entry(384, 120, 1, 16, layer_scale=1e-6),
        "patchconvnet_b60": _entry(768, 60, 1, 16, layer_scale=1e-6),
        "patchconvnet_b120": _entry(768, 120, 1, 16, layer_scale=1e-6),
        "patchconvnet_l60": _entry(1024, 60, 1, 16, layer_scale=1e-6),
        "patchconvnet_l120": _entry(1024, 120, 1, 16, layer_scale=1e-6),
        "patchconvnet_s60_multi": _entry(384, 60, 1, 16, class_tokens=True),
    },
    aliases={
        "S60": ("patchconvnet_s60", 224),
        "S120": ("patchconvnet_s120", 224),
        "B60": ("patchconvnet_b60", 224),
        "B120": ("patchconvnet_b120", 224),
        "L60": ("patchconvnet_l60", 224),
        "L120": ("patchconvnet_l120", 224),
        "S60_multi": ("patchconvnet_s60_multi", 224),
    },
    published=[
        *_rows("patchconvnet_s60", 224, (25.23, 3.98), (1129, 1322),
               (IN_1K, 82.1, None, "s60_224_1k.pth"), (IN_21K, 83.5, None, "s60_224_21k.pth")),
        *_rows("patchconvnet_s60", 384, (25.23, 11.68), (388, 3604), (IN_21K, 84.9, None, "s60_384_21k.pth")),
        *_rows("patchconvnet_s60", 512, (25.23, 20.76), (216, 6296), (IN_21K, 85.4, None, "s60_512_21k.pth")),
        *_rows("patchconvnet_s120", 224, (47.72, 7.49), (580, 1450), (IN_1K, 83.2, None, "s120_224_1k.pth")),
        *_rows("patchconvnet_b60", 224, (99.39, 15.80), (541, 2790),
               (IN_1K, 83.5, None, "b60_224_1k.pth"), (IN_21K, 85.4, None, "b60_224_21k.pth")),
        *_rows("patchconvnet_b60", 384, (99.39, 46.39), (185, 7067), (IN_21K, 86.5, None, "b60_384_21k.pth")),
        *_rows("patchconvnet_b120", 224, (188.61, 29.77), (280, 3314),
               (IN_1K, 84.1, None, "b120_224_1k.pth"), (IN_21K, 86.0, None, "b120_224_21k.pth")),
        *_rows("patchconvnet_b120", 384, (188.61, 87.42), (96, 7587), (IN_21K, 86.9, None, "b120_384_21k.pth")),
        Published("patchconvnet_l60", 224, 176.01, 28.04),
        Published("patchconvnet_l120", 224, 334.29, 52.85),
        *_rows("patchconvnet_s60_multi", 224, (25.61, 5.31), UNKNOWN,
               (IN_1K, 81.1, None, "s60_multi_scratch_1k.pth"),
               (FROM_S60, 82.0, None, "s60_multi_finetune_1k.pth")),
    ],
    toys={
        "patchconvnet": _entry(32, 3, 1, 16, layer_scale=0.1),
        "class_tokens": _entry(32, 3, 1, 16, layer_scale=0.1, class_tokens=True),
    },
    fixed={"position": "learned", "pool": "token", "stem": "patch"},
    needs_layer_scale=True,
    has_attention=False,
    layers_in_order=False,
)  # fmt: skip
