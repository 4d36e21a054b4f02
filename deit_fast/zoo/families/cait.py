"""CaiT: facebookresearch/deit cait_models.py, arXiv:2103.17239."""

from functools import partial

from deit_fast.zoo.family import DISTILLED, UNKNOWN, Architecture, Family, published_rows

_entry = partial(Architecture, family="cait")
_rows = partial(published_rows, "README_cait.md")

FAMILY = Family(
    position=2,
    architectures={
        "cait_xxs24": _entry(192, 24, 4, 16, layer_scale=1e-5),
        "cait_xxs36": _entry(192, 36, 4, 16, layer_scale=1e-5),
        "cait_xs24": _entry(288, 24, 6, 16, layer_scale=1e-5),
        "cait_s24": _entry(384, 24, 8, 16, layer_scale=1e-5),
        "cait_s36": _entry(384, 36, 8, 16, layer_scale=1e-6),
        "cait_m36": _entry(768, 36, 16, 16, layer_scale=1e-6),
        "cait_m48": _entry(768, 48, 16, 16, layer_scale=1e-6),
    },
    aliases={
        "cait_xxs24_224": ("cait_xxs24", 224),
        "cait_xxs24_384": ("cait_xxs24", 384),
        "cait_xxs36_224": ("cait_xxs36", 224),
        "cait_xxs36_384": ("cait_xxs36", 384),
        "cait_xs24_384": ("cait_xs24", 384),
        "cait_s24_224": ("cait_s24", 224),
        "cait_s24_384": ("cait_s24", 384),
        "cait_s36_384": ("cait_s36", 384),
        "cait_m36_384": ("cait_m36", 384),
        "cait_m48_448": ("cait_m48", 448),
        "cait_XXS24_224": ("cait_xxs24", 224),
        "cait_XXS24": ("cait_xxs24", 384),
        "cait_XXS36_224": ("cait_xxs36", 224),
        "cait_XXS36": ("cait_xxs36", 384),
        "cait_XS24": ("cait_xs24", 384),
        "cait_S24_224": ("cait_s24", 224),
        "cait_S24": ("cait_s24", 384),
        "cait_S36": ("cait_s36", 384),
        "cait_M36": ("cait_m36", 384),
        "cait_M48": ("cait_m48", 448),
    },
    published=[
        *_rows("cait_xxs24", 224, (11.96, 2.52), UNKNOWN, (DISTILLED, None, None, "XXS24_224.pth")),
        *_rows("cait_xxs24", 384, (12.03, 9.60), UNKNOWN, (DISTILLED, None, None, "XXS24_384.pth")),
        *_rows("cait_xxs36", 224, (17.30, 3.76), UNKNOWN, (DISTILLED, None, None, "XXS36_224.pth")),
        *_rows("cait_xxs36", 384, (17.37, 14.31), UNKNOWN, (DISTILLED, None, None, "XXS36_384.pth")),
        *_rows("cait_xs24", 384, (26.67, 19.24), UNKNOWN, (DISTILLED, 84.1, None, "XS24_384.pth")),
        *_rows("cait_s24", 224, (46.92, 9.33), UNKNOWN, (DISTILLED, 83.5, None, "S24_224.pth")),
        *_rows("cait_s24", 384, (47.06, 32.11), UNKNOWN, (DISTILLED, 85.1, None, "S24_384.pth")),
        *_rows("cait_s36", 384, (68.37, 47.91), UNKNOWN, (DISTILLED, 85.4, None, "S36_384.pth")),
        *_rows("cait_m36", 384, (271.22, 172.94), UNKNOWN, (DISTILLED, 86.1, None, "M36_384.pth")),
        *_rows("cait_m48", 448, (356.46, 329.11), UNKNOWN, (DISTILLED, 86.5, None, "M48_448.pth")),
    ],
    toys={
        "cait": _entry(32, 3, 2, 8, layer_scale=0.1),
    },
    fixed={"drop_path_decay": "constant", "position": "learned", "pool": "token", "stem": "patch"},
    needs_layer_scale=True,
)  # fmt: skip
