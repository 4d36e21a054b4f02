"""ResMLP: facebookresearch/deit resmlp_models.py, arXiv:2105.03404. It has no attention and so no heads."""

from functools import partial

from deit_fast.zoo.family import DINO, DISTILLED, IN_1K, IN_21K, UNKNOWN, Architecture, Family, published_rows

_entry = partial(Architecture, family="resmlp")
_rows = partial(published_rows, "README_resmlp.md")

FAMILY = Family(
    position=3,
    architectures={
        "resmlp_12": _entry(384, 12, 1, 16, layer_scale=0.1),
        "resmlp_24": _entry(384, 24, 1, 16, layer_scale=1e-5),
        "resmlp_36": _entry(384, 36, 1, 16, layer_scale=1e-6),
        "resmlp_big_24": _entry(768, 24, 1, 8, layer_scale=1e-6),
    },
    aliases={
        "resmlp_12_224": ("resmlp_12", 224),
        "resmlp_24_224": ("resmlp_24", 224),
        "resmlp_36_224": ("resmlp_36", 224),
        "resmlp_big_24_224": ("resmlp_big_24", 224),
        "resmlpB_24": ("resmlp_big_24", 224),
    },
    published=[
        *_rows("resmlp_12", 224, (15.35, 3.01), UNKNOWN, (IN_1K, None, None, "resmlp_12_no_dist.pth"),
               (DISTILLED, 77.8, None, "resmlp_12_dist.pth"), (DINO, None, None, "resmlp_12_dino.pth")),
        *_rows("resmlp_24", 224, (30.02, 5.96), UNKNOWN, (IN_1K, None, None, "resmlp_24_no_dist.pth"),
               (DISTILLED, 80.8, None, "resmlp_24_dist.pth"), (DINO, None, None, "resmlp_24_dino.pth")),
        *_rows("resmlp_36", 224, (44.69, 8.91), UNKNOWN, (IN_1K, None, None, "resmlp_36_no_dist.pth"),
               (DISTILLED, 81.1, None, "resmlp_36_dist.pth")),
        *_rows("resmlp_big_24", 224, (129.14, 100.23), UNKNOWN, (IN_1K, None, None, "resmlpB_24_no_dist.pth"),
               (DISTILLED, 83.6, None, "resmlpB_24_dist.pth"), (IN_21K, 84.4, None, "resmlpB_24_22k.pth")),
    ],
    # timm's names of before 0.9, which its mlp_mixer.py still takes
    weights_names={
        "resmlp_12_distilled_224": "resmlp_12_dist.pth",
        "resmlp_24_distilled_224": "resmlp_24_dist.pth",
        "resmlp_36_distilled_224": "resmlp_36_dist.pth",
        "resmlp_big_24_distilled_224": "resmlpB_24_dist.pth",
        "resmlp_12_224_dino": "resmlp_12_dino.pth",
        "resmlp_24_224_dino": "resmlp_24_dino.pth",
        "resmlp_big_24_224_in22ft1k": "resmlpB_24_22k.pth",
    },
    toys={
        "resmlp": _entry(32, 3, 1, 8, layer_scale=0.1),
    },
    fixed={"drop_path_decay": "constant", "position": "learned", "pool": "token", "stem": "patch"},
    needs_layer_scale=True,
    has_attention=False,
    eval_crop_ratio=0.875,
)  # fmt: skip
