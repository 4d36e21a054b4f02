"""The reference's image path in PIL and torchvision, one image and one operation at a time."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

Pixels = NDArray[np.uint8]


def decode(encoded: NDArray[np.uint8]) -> Image.Image:
    return Image.open(io.BytesIO(encoded.tobytes())).convert("RGB")


def resized_crop(
    image: Image.Image, geometry: Sequence[int], size: int, kernel: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """PIL's own resize of the crop."""
    top, left, height, width = (int(side) for side in geometry)
    return image.crop((left, top, left + width, top + height)).resize((size, size), kernel)


def simple_random_crop(
    image: Image.Image, geometry: Sequence[int], size: int, padding_mode: str = "reflect"
) -> Image.Image:
    """The shorter side to S, 4 px of reflection (or black, "constant") on every side, then the window."""
    _, _, top, left = (int(side) for side in geometry)
    padded = transforms.pad(transforms.resize(image, size, InterpolationMode.BICUBIC), 4, padding_mode=padding_mode)
    return transforms.crop(padded, top + 4, left + 4, size, size)


def evaluation_view(image: Image.Image, size: int, crop_ratio: float) -> Image.Image:
    resized = transforms.resize(image, int(size / crop_ratio), InterpolationMode.BICUBIC)
    return transforms.center_crop(resized, size)


def three_augment(image: Image.Image, operation: int, sigma: float) -> Image.Image:
    if operation == 0:
        return transforms.to_grayscale(image, num_output_channels=3)
    if operation == 1:
        return ImageOps.solarize(image, 128)
    return image.filter(ImageFilter.GaussianBlur(radius=sigma))


def color_jitter(image: Image.Image, factors: Sequence[float], order: Sequence[int]) -> Image.Image:
    """factors of brightness, contrast, saturation; order a permutation of 0, 1, 2."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind in order:
        image = enhancers[kind](image).enhance(float(factors[kind]))
    return image
