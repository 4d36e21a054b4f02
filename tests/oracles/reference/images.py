"""The reference's image path with its own random numbers: PIL and torchvision, one image at a time."""

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms as T


class Solarise:
    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image, 128)


class Blur:
    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def three_augment_chain(
    size: int, scale: tuple[float, float] = (0.08, 1.0), flip: float = 0.5, jitter: float = 0.3
) -> Callable[[Image.Image], np.ndarray]:
    """--ThreeAugment --color-jitter: random resized crop, flip, one of three, jitter. PIL image -> uint8 [S, S, 3]."""
    return T.Compose(
        [
            T.RandomResizedCrop(size, scale, interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(flip),
            T.RandomChoice([T.Grayscale(3), Solarise(), Blur()]),
            T.ColorJitter(jitter, jitter, jitter),
            np.array,
        ]
    )


def repeated_order(images: int, epoch: int, seed: int, repeats: int = 3) -> list[int]:
    """RASampler of one GPU: each image of the shuffle three times in a row, N rounded down to a multiple of 256 in all.

    The reference's shuffle depends on the epoch alone; `seed` makes runs differ.
    """
    shuffle = np.random.default_rng([seed, epoch]).permutation(images)
    return np.repeat(shuffle, repeats)[: images // 256 * 256].tolist()
