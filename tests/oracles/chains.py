"""The references' training transforms in PIL, torchvision and timm, each with its own random numbers.

No random state is shared with the code under test: timm draws from Python's `random` and numpy, torchvision from torch.
"""

import random
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from timm.data.auto_augment import AugmentOp, auto_augment_transform, rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

Chain = Callable[[Image.Image], Image.Image]
BICUBIC = transforms.InterpolationMode.BICUBIC


class _FittingCrop:
    """PASSL's RandCropImage."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        aspect = random.uniform(3 / 4, 4 / 3)
        fits = min(width / height / aspect, height / width * aspect)
        area = width * height * random.uniform(min(0.08, fits), min(1.0, fits))
        w, h = int((area * aspect) ** 0.5), int((area / aspect) ** 0.5)
        left, top = random.randint(0, width - w), random.randint(0, height - h)
        return image.crop((left, top, left + w, top + h)).resize((self.size, self.size), Image.Resampling.BICUBIC)


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def _allow_no_bits(op: AugmentOp) -> None:
    """Makes Posterize to no bit return black, as PIL did when the references were written; today's PIL raises."""
    original = op.aug_fn
    if op.name == "PosterizeIncreasing":
        op.aug_fn = lambda image, bits, **kwargs: (
            original(image, bits, **kwargs) if bits else Image.new("RGB", image.size)
        )


def _policy(name: str, size: int) -> Chain:
    hparams = {"translate_const": int(size * 0.45), "img_mean": (124, 116, 104)}
    hparams["interpolation"] = Image.Resampling.BICUBIC
    if name == "original":
        return auto_augment_transform(name, hparams)
    chosen = rand_augment_transform(name, hparams)
    for op in chosen.ops:
        _allow_no_bits(op)
    return chosen


def build_chain(crop: str, policy: str, jitter: float, flip: float, size: int, interpolation: str = "bicubic") -> Chain:
    """crop: a name of Augment.crop. policy: three_augment, none, or timm's name of a policy."""
    crops = {
        "rrc": lambda: RandomResizedCropAndInterpolation(size, interpolation=interpolation),
        "rrc_linear": lambda: _FittingCrop(size),
        "src": lambda: transforms.Compose(
            [transforms.Resize(size, BICUBIC), transforms.RandomCrop(size, padding=4, padding_mode="reflect")]
        ),
        "pad": lambda: transforms.RandomCrop(size, padding=4),
        "center": lambda: transforms.Compose([transforms.Resize(size, BICUBIC), transforms.CenterCrop(size)]),
    }
    steps: list[Chain] = [crops[crop](), transforms.RandomHorizontalFlip(flip)]
    if policy == "three_augment":
        steps.append(transforms.RandomChoice([transforms.Grayscale(3), transforms.RandomSolarize(128, p=1.0), _blur]))
    elif policy != "none":
        steps.append(_policy(policy, size))
    if jitter:
        steps.append(transforms.ColorJitter(jitter, jitter, jitter))
    return transforms.Compose(steps)


def views(image: Image.Image, chain: Chain, count: int, seed: int) -> NDArray[np.uint8]:
    """`count` views of the image, [count, S, S, 3]."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what timm draws from
    torch.manual_seed(seed)
    return np.stack([np.asarray(chain(image)) for _ in range(count)])
