"""The reference's image loader (facebookresearch/deit datasets.py, augment.py): PIL, torchvision, worker processes."""

import io
import random
from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from deit_fast.data.sources.base import Source
from deit_fast.recipe.sections import Data

WORKER_TIMEOUT = 120  # seconds; a worker that hangs then raises an error


class _Blur:
    """PIL's blur with a radius drawn from 0.1 to 2."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def three_augment_chain(image_size: int, data: Data) -> Callable[[Image.Image], Tensor]:
    """The reference's training transform with --ThreeAugment --color-jitter 0.3."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(image_size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomChoice([transforms.Grayscale(3), transforms.RandomSolarize(128, p=1.0), _Blur()]),
            transforms.ColorJitter(0.3, 0.3, 0.3),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )


def evaluation_chain(image_size: int, data: Data) -> Callable[[Image.Image], Tensor]:
    """The reference's evaluation transform."""
    return transforms.Compose(
        [
            transforms.Resize(
                int(image_size / data.eval_crop_ratio), transforms.InterpolationMode(data.eval_interpolation)
            ),
            transforms.CenterCrop(image_size),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )


def decode_chain(image: Image.Image) -> Tensor:
    """Only decoding, which has happened before this is called."""
    return torch.tensor(image.width)


class PILImages(Dataset[tuple[Tensor, int]]):
    """The images of a source in a given order, decoded by PIL: an index that occurs thrice is decoded thrice."""

    def __init__(self, source: Source, indices: Sequence[int], transform: Callable[[Image.Image], Tensor]) -> None:
        self.source, self.indices, self.transform = source, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        index = int(self.indices[place])
        image = Image.open(io.BytesIO(self.source.read(index).tobytes())).convert("RGB")
        return self.transform(image), int(self.source.labels[index])


def pil_loader(
    source: Source,
    indices: Sequence[int],
    transform: Callable[[Image.Image], Tensor],
    batch: int,
    workers: int,
    pin_memory: bool,
) -> DataLoader[tuple[Tensor, int]]:
    """torch's DataLoader with the reference's settings, but with workers that live as long as the loader."""
    return DataLoader(
        PILImages(source, indices, transform),
        batch_size=batch,
        num_workers=workers,
        pin_memory=pin_memory,
        timeout=WORKER_TIMEOUT if workers else 0,
        persistent_workers=workers > 0,
    )
