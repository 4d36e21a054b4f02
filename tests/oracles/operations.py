"""The operations of RandAugment and AutoAugment as timm computes them, with a given sign."""

from unittest import mock

from PIL import Image
from timm.data import auto_augment


def apply(image: Image.Image, name: str, level: float, sign: float) -> Image.Image:
    to_argument = auto_augment.LEVEL_TO_ARG[name]
    with mock.patch.object(auto_augment.random, "random", return_value=0.75 if sign < 0 else 0.25):
        arguments = to_argument(level, {}) if to_argument else ()
    if name == "PosterizeIncreasing" and arguments == (0,):
        return Image.new("RGB", image.size)  # the result of earlier PIL versions, which accepted 0 bits
    return auto_augment.NAME_TO_OP[name](
        image, *arguments, fillcolor=(124, 116, 104), resample=Image.Resampling.BICUBIC
    )
