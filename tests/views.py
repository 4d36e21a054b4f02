"""Views of generated photographs through the image graph, and their distance from expected views."""

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.augment.view_params import ViewParams, draw_views
from deit_fast.data.loader.pipeline import train_inputs, train_pipeline
from deit_fast.recipe.sections import Augment

SIZE = 64
CPU = torch.device("cpu")
PLAIN = Augment(policy="none", color_jitter=0.0)
Encoded = list[NDArray[np.uint8]]


def photograph(seed: int, height: int, width: int) -> Image.Image:
    """A synthetic photograph: smooth fields at several scales, shapes with hard edges, a little noise."""
    rng = np.random.default_rng(seed)
    field = np.zeros((height, width, 3))
    for cells in (3, 9, 30):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        field += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), float) / cells
    field *= 255 / field.max()
    for _ in range(6):
        top, left = rng.integers(0, height), rng.integers(0, width)
        field[top : top + height // 5, left : left + width // 7] = rng.integers(0, 256, 3)
    return Image.fromarray((field + rng.normal(0, 3, field.shape)).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, **options: object) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "JPEG", "quality": 90, **options})
    return np.frombuffer(buffer.getvalue(), np.uint8)


def six_photographs() -> Encoded:
    """Six photographs of different shapes."""
    sizes = [(120, 160), (160, 120), (97, 131), (200, 90), (80, 80), (333, 500)]
    return [encode(photograph(seed, *size)) for seed, size in enumerate(sizes)]


def params(count: int, **given: object) -> ViewParams:
    """Parameters for views of the whole image without any augmentation, except for those given."""
    values: dict[str, object] = {
        "geometry": np.tile(np.int32([0, 0, SIZE, SIZE]), (count, 1)),
        "flip": np.zeros(count, np.int32),
        "operation": np.full(count, -1, np.int32),
        "sigma": np.ones(count, np.float32),
        "jitter": np.ones((count, 3), np.float32),
        "order": np.tile(np.arange(3, dtype=np.int32), (count, 1)),
        "interpolation": np.zeros(count, np.int32),
        "policy_op": np.full((count, 2), -1, np.int32),
        "policy_level": np.zeros((count, 2), np.float32),
        "policy_sign": np.ones((count, 2), np.float32),
    }
    return ViewParams(**(values | given))  # type: ignore[arg-type]


def run(
    augment: Augment,
    encoded: Encoded,
    drawn: ViewParams,
    size: int = SIZE,
    device: torch.device = CPU,
    backend: str = "dali",
) -> NDArray[np.uint8]:
    inputs = train_inputs(augment, size, encoded, drawn)
    views = train_pipeline(augment, size, lambda: inputs, len(encoded), device, threads=1, backend=backend).run()
    return views.permute(0, 2, 3, 1).cpu().numpy()


def run_on_pixels(
    augment: Augment, images: list[Image.Image], backend: str = "dali", **given: object
) -> NDArray[np.uint8]:
    """The steps after the crop alone: S x S PNGs, uncropped, so that decoding and resizing change nothing."""
    encoded = [encode(image, format="PNG") for image in images]
    return run(augment, encoded, params(len(images), **given), backend=backend)


def squares(count: int) -> list[Image.Image]:
    return [photograph(seed, SIZE, SIZE) for seed in range(count)]


def difference(actual: NDArray[np.uint8], expected: list[Image.Image]) -> tuple[float, float, float]:
    """Mean, 99th percentile, maximum."""
    gap = np.abs(actual.astype(int) - np.stack([np.asarray(image) for image in expected]).astype(int))
    return float(gap.mean()), float(np.percentile(gap, 99)), float(gap.max())


def assert_close(
    actual: NDArray[np.uint8], expected: list[Image.Image], mean: float, p99: float, largest: float
) -> None:
    found = difference(actual, expected)
    assert all(np.array(found) <= (mean, p99, largest)), found


def sizes_of(count: int, height: int, width: int) -> np.ndarray:
    return np.tile(np.array([[height, width]], np.int32), (count, 1))


def views_of(augment: Augment, count: int = 20_000, **changes: Any) -> ViewParams:
    inputs: dict[str, Any] = {"image_size": 224, "seed": 3, "epoch": 1, "indices": np.arange(count)}
    inputs |= {"views": np.zeros(count, np.int64), "sizes": sizes_of(count, 375, 500)}
    return draw_views(augment, **(inputs | changes))
