"""Image loaders in use today, for the same cases as ours: each returns normalised batches, [B, 3, S, S] float32.

They are albumentations (OpenCV's decoder, and resizing by area, which is less work than bicubic), a plain DALI graph,
torchvision v2 on tensors, SPDL with simplejpeg, torchvision on PIL, and timm's RandAugment on PIL. `pip install
deit_fast[peers]` installs those that deit_fast does not require. A peer that is not installed is named and left out.
"""

import importlib.util
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from deit_fast.data.sources.base import Source
from deit_fast.recipe.sections import Data

from .pil import WORKER_TIMEOUT, evaluation_chain, three_augment_chain

NEEDS = {
    "albumentations": ("albumentations", "cv2"),
    "dali": ("nvidia.dali",),
    "torchvision_v2": (),
    "spdl": ("spdl.pipeline", "simplejpeg"),
    "torchvision_pil": (),
    "timm_pil": (),
}
"""Modules that a peer needs beyond deit_fast's requirements."""


def absent(name: str) -> str:
    """The first module that the peer needs and that is missing; "" if the peer can run."""
    for module in NEEDS[name]:
        try:
            if importlib.util.find_spec(module) is None:
                return module
        except ModuleNotFoundError:
            return module
    return ""


def peers_of(case: str) -> list[str]:
    """The peers that support a case of `loader`."""
    if case == "rand_augment":
        return ["timm_pil"]
    return [name for name in NEEDS if name != "timm_pil"]


def build_peer(
    name: str, case: str, source: Source, indices: Sequence[int], size: int, data: Data, batch: int, workers: int
) -> Callable[[], None]:
    """A pass over the images of a source at `indices` in batches, by one of `peers_of(case)`."""
    if name == "dali":
        return _dali(case, source, indices, size, data, batch, workers)
    decode, transform = _CHAINS[name](case, size, data)
    images = _Images(source, indices, lambda encoded: transform(decode(encoded)))
    if name == "spdl":
        return _spdl(images, batch, workers)
    loader: DataLoader[torch.Tensor] = DataLoader(
        images, batch, num_workers=workers, persistent_workers=True, timeout=WORKER_TIMEOUT
    )

    def run() -> None:
        for _ in loader:
            pass

    return run


class _Images(Dataset[torch.Tensor]):
    def __init__(self, source: Source, indices: Sequence[int], make: Callable[[Any], torch.Tensor]) -> None:
        self.source, self.indices, self.make = source, list(indices), make

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> torch.Tensor:
        return self.make(self.source.read(int(self.indices[place])))


_Chain = tuple[Callable[[Any], Any], Callable[[Any], torch.Tensor]]


def _open(encoded: Any) -> Image.Image:
    return Image.open(io.BytesIO(encoded.tobytes())).convert("RGB")


def _pil(case: str, size: int, data: Data) -> _Chain:
    return _open, evaluation_chain(size, data) if case == "evaluation" else three_augment_chain(size, data)


def _timm(case: str, size: int, data: Data) -> _Chain:
    from timm.data.transforms_factory import create_transform

    nothing: Any = None
    # Without mstd0.5: its levels of 10 would make Posterize keep no bit, which Pillow 13 refuses.
    chain = create_transform(
        size, is_training=True, auto_augment="rand-m9-inc1", interpolation="bicubic", color_jitter=nothing,
        re_prob=0.0, mean=data.mean, std=data.std,
    )  # fmt: skip
    return _open, chain


def _albumentations(case: str, size: int, data: Data) -> _Chain:
    import albumentations
    import cv2
    from albumentations.pytorch import ToTensorV2

    a = albumentations
    cv2.setNumThreads(0)
    if case == "evaluation":
        shorter = int(size / data.eval_crop_ratio)
        chain = [a.SmallestMaxSize(shorter, interpolation=cv2.INTER_AREA), a.CenterCrop(size, size)]
    else:
        one = [a.ToGray(p=1.0), a.Solarize((0.5, 0.5), p=1.0), a.GaussianBlur(0, (0.1, 2.0), p=1.0)]
        span = (0.7, 1.3)
        chain = [
            a.RandomResizedCrop((size, size), scale=(0.08, 1.0), interpolation=cv2.INTER_AREA),
            a.HorizontalFlip(p=0.5),
            a.OneOf(one, p=1.0),
            a.ColorJitter(span, span, span, (0, 0), p=1.0),
        ]
    compose = a.Compose([*chain, a.Normalize(data.mean, data.std), ToTensorV2()])

    def decode(encoded: Any) -> Any:
        return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)

    return decode, lambda image: compose(image=image)["image"]


def _on_tensors(case: str, size: int, data: Data) -> Callable[[Any], torch.Tensor]:
    from torchvision.transforms import v2

    cubic = v2.InterpolationMode.BICUBIC
    if case == "evaluation":
        chain = [v2.Resize(int(size / data.eval_crop_ratio), cubic, antialias=True), v2.CenterCrop(size)]
    else:
        one = [v2.Grayscale(3), v2.RandomSolarize(128, p=1.0), v2.GaussianBlur(9, (0.1, 2.0))]
        chain = [
            v2.RandomResizedCrop(size, interpolation=cubic, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomChoice(one),
            v2.ColorJitter(0.3, 0.3, 0.3),
        ]
    made: Callable[[Any], torch.Tensor] = v2.Compose(
        [*chain, v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)]
    )
    return made


def _torchvision(case: str, size: int, data: Data) -> _Chain:
    from torchvision.io import ImageReadMode, decode_jpeg

    return lambda encoded: decode_jpeg(torch.from_numpy(encoded.copy()), ImageReadMode.RGB), _on_tensors(
        case, size, data
    )


def _simplejpeg(case: str, size: int, data: Data) -> _Chain:
    import simplejpeg

    def decode(encoded: Any) -> torch.Tensor:
        return torch.from_numpy(simplejpeg.decode_jpeg(encoded)).permute(2, 0, 1)

    return decode, _on_tensors(case, size, data)


_CHAINS: dict[str, Callable[[str, int, Data], _Chain]] = {
    "albumentations": _albumentations,
    "torchvision_v2": _torchvision,
    "spdl": _simplejpeg,
    "torchvision_pil": _pil,
    "timm_pil": _timm,
}


def _spdl(images: _Images, batch: int, workers: int) -> Callable[[], None]:
    from spdl.pipeline import PipelineBuilder

    places: Any = range(len(images))

    def run() -> None:
        builder: Any = PipelineBuilder().add_source(places).pipe(images.__getitem__, concurrency=workers)
        pipeline = builder.aggregate(batch).pipe(torch.stack).add_sink(3).build(num_threads=workers)
        with pipeline.auto_stop():
            for _ in pipeline:
                pass

    return run


def _dali(
    case: str, source: Source, indices: Sequence[int], size: int, data: Data, batch: int, threads: int
) -> Callable[[], None]:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali import math as dali_math

    waiting: list[list[int]] = []

    def feed() -> list[Any]:
        if not waiting:
            raise StopIteration
        return [source.read(index) for index in waiting.pop(0)]

    @pipeline_def(batch_size=batch, num_threads=threads, device_id=None, enable_conditionals=True)
    def graph() -> Any:
        encoded, flip = fn.external_source(source=feed, batch=True), 0
        images: Any
        if case == "evaluation":
            images = fn.decoders.image(encoded)
            shorter = int(size / data.eval_crop_ratio)
            images = fn.resize(images, resize_shorter=shorter, interp_type=types.INTERP_CUBIC, antialias=True)
        else:
            images = fn.decoders.image_random_crop(
                encoded, random_aspect_ratio=[0.75, 4 / 3], random_area=[0.08, 1.0], num_attempts=10
            )
            images = fn.resize(images, size=[size, size], interp_type=types.INTERP_CUBIC, antialias=True)
            flip = fn.random.coin_flip(probability=0.5)
            kind = fn.random.uniform(values=[0, 1, 2], dtype=types.INT32)
            if kind == 0:
                images = fn.hsv(images, saturation=0.0)
            elif kind == 1:
                images = dali_math.min(images, ~images)
            else:
                images = fn.gaussian_blur(images, sigma=fn.random.uniform(range=[0.1, 2.0]))
            factors = [fn.random.uniform(range=[0.7, 1.3]) for _ in range(3)]
            images = fn.color_twist(images, brightness=factors[0], contrast=factors[1], saturation=factors[2])
        mean, std = ([255 * each for each in values] for values in (data.mean, data.std))
        return fn.crop_mirror_normalize(
            images, dtype=types.FLOAT, output_layout="CHW", crop=(size, size), mean=mean, std=std, mirror=flip
        )

    pipeline = graph()
    pipeline.build()
    batches = np.asarray(indices)[: len(indices) // batch * batch].reshape(-1, batch).tolist()

    def run() -> None:
        waiting.extend(batches)
        try:
            while True:
                pipeline.run()
        except StopIteration:
            pipeline.reset()

    return run
