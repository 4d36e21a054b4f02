"""The image graph against PIL and torchvision. Differences are of uint8 values, 0 to 255."""

import io
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.params import ViewParams, eval_geometry
from deit_fast.data.pipeline import eval_pipeline, import_dali, train_inputs, train_pipeline
from deit_fast.sections import Augment
from tests.oracles import three_augment as oracle

SIZE = 64
CPU = torch.device("cpu")
PLAIN = Augment(policy="none", color_jitter=0.0)
Encoded = list[NDArray[np.uint8]]


def photograph(seed: int, height: int, width: int) -> Image.Image:
    """Something like a photograph: smooth fields at several scales, shapes with hard edges, a little noise."""
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


@pytest.fixture(scope="module")
def photographs() -> Encoded:
    sizes = [(120, 160), (160, 120), (97, 131), (200, 90), (80, 80), (333, 500)]
    return [encode(photograph(seed, *size)) for seed, size in enumerate(sizes)]


def params(count: int, **given: object) -> ViewParams:
    """Hand-made parameters: the whole image, nothing done, but for what is given."""
    values: dict[str, object] = {
        "geometry": np.tile(np.int32([0, 0, SIZE, SIZE]), (count, 1)),
        "flip": np.zeros(count, np.int32),
        "operation": np.full(count, -1, np.int32),
        "sigma": np.ones(count, np.float32),
        "jitter": np.ones((count, 3), np.float32),
        "order": np.tile(np.arange(3, dtype=np.int32), (count, 1)),
        "rand_op": np.full((count, 2), -1, np.int32),
        "rand_magnitude": np.zeros((count, 2), np.float32),
        "rand_sign": np.ones((count, 2), np.float32),
    }
    return ViewParams(**(values | given))  # type: ignore[arg-type]


def run(
    augment: Augment, encoded: Encoded, drawn: ViewParams, size: int = SIZE, device: torch.device = CPU
) -> NDArray[np.uint8]:
    inputs = train_inputs(augment, size, encoded, drawn)
    views = train_pipeline(augment, size, lambda: inputs, len(encoded), device, threads=1).run()
    return views.permute(0, 2, 3, 1).cpu().numpy()


def run_on_pixels(augment: Augment, images: list[Image.Image], **given: object) -> NDArray[np.uint8]:
    """What follows the crop alone: SxS PNGs, whole, so that decode and resize change nothing."""
    return run(augment, [encode(image, format="PNG") for image in images], params(len(images), **given))


def squares(count: int) -> list[Image.Image]:
    return [photograph(seed, SIZE, SIZE) for seed in range(count)]


def difference(actual: NDArray[np.uint8], expected: list[Image.Image]) -> tuple[float, float, float]:
    """mean, 99th percentile, maximum"""
    gap = np.abs(actual.astype(int) - np.stack([np.asarray(image) for image in expected]).astype(int))
    return float(gap.mean()), float(np.percentile(gap, 99)), float(gap.max())


def assert_close(
    actual: NDArray[np.uint8], expected: list[Image.Image], mean: float, p99: float, largest: float
) -> None:
    found = difference(actual, expected)
    assert all(np.array(found) <= (mean, p99, largest)), found


# Decode and crops


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("crop", ["rrc", "src"])
def test_decode_equals_pil(subsampling: int, crop: str) -> None:
    """Both decoders, the one of a window and the whole one: bit-exact."""
    image = encode(photograph(0, SIZE, SIZE), subsampling=subsampling)
    geometry = np.int32([[0, 0, SIZE, SIZE]] if crop == "rrc" else [[SIZE, SIZE, 0, 0]])
    views = run(PLAIN.model_copy(update={"crop": crop}), [image], params(1, geometry=geometry))
    assert difference(views, [oracle.decode(image)]) == (0, 0, 0)


def test_decode_window_equals_decode_then_crop(photographs: Encoded) -> None:
    geometry = np.tile(np.int32([11, 7, SIZE, SIZE]), (len(photographs), 1))
    views = run(PLAIN, photographs, params(len(photographs), geometry=geometry))
    assert difference(views, [oracle.decode(e).crop((7, 11, 7 + SIZE, 11 + SIZE)) for e in photographs]) == (0, 0, 0)


def test_exif_rotation_is_not_applied() -> None:
    image = photograph(3, SIZE, SIZE)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    rotated = encode(image, exif=exif)
    for crop, geometry in (("rrc", [0, 0, SIZE, SIZE]), ("src", [SIZE, SIZE, 0, 0])):
        views = run(PLAIN.model_copy(update={"crop": crop}), [rotated], params(1, geometry=np.int32([geometry])))
        assert difference(views, [oracle.decode(rotated)]) == (0, 0, 0)


def test_grey_and_palette_images_become_rgb() -> None:
    image = photograph(4, SIZE, SIZE)
    encoded = [encode(image.convert("L")), encode(image.convert("P"), format="PNG")]
    assert difference(run(PLAIN, encoded, params(2)), [oracle.decode(e) for e in encoded]) == (0, 0, 0)


@pytest.mark.parametrize("size", [32, 224])
def test_random_resized_crop(photographs: Encoded, size: int) -> None:
    geometry = np.int32(
        [[0, 0, 120, 160], [40, 10, 33, 100], [5, 5, 90, 120], [0, 0, 200, 90], [60, 60, 9, 9], [33, 50, 300, 400]]
    )
    views = run(PLAIN, photographs, params(6, geometry=geometry), size)
    expected = [oracle.resized_crop(oracle.decode(e), g, size) for e, g in zip(photographs, geometry, strict=True)]
    assert_close(views, expected, mean=0.3, p99=2, largest=16)


def test_simple_random_crop(photographs: Encoded) -> None:
    images = [oracle.decode(e) for e in photographs]
    resized = [eval_geometry(np.int32([image.size[::-1]]), SIZE, 1.0)[0, :2] for image in images]
    for corner in (np.minimum, np.maximum):  # hanging over the top left, then over the bottom right
        offsets = [corner(-4 + 0 * hw, hw - SIZE + 4) for hw in resized]
        geometry = np.int32([np.concatenate(pair) for pair in zip(resized, offsets, strict=True)])
        views = run(PLAIN.model_copy(update={"crop": "src"}), photographs, params(6, geometry=geometry))
        expected = [oracle.simple_random_crop(i, g, SIZE) for i, g in zip(images, geometry, strict=True)]
        assert_close(views, expected, mean=0.3, p99=2, largest=16)


def test_reflection_does_not_repeat_the_edge() -> None:
    image = encode(photograph(0, SIZE, SIZE))
    geometry = np.int32([[SIZE, SIZE, -4, 4]])
    views = run(PLAIN.model_copy(update={"crop": "src"}), [image], params(1, geometry=geometry))
    assert difference(views, [oracle.simple_random_crop(oracle.decode(image), geometry[0], SIZE)]) == (0, 0, 0)


@pytest.mark.parametrize("crop_ratio", [1.0, 0.875])
def test_evaluation_view(photographs: Encoded, crop_ratio: float) -> None:
    images = [oracle.decode(e) for e in photographs]
    geometry = eval_geometry(np.int32([image.size[::-1] for image in images]), SIZE, crop_ratio)
    views = eval_pipeline(SIZE, lambda: [photographs, geometry], 6, CPU, threads=1).run().permute(0, 2, 3, 1).numpy()
    assert_close(views, [oracle.evaluation_view(i, SIZE, crop_ratio) for i in images], mean=0.3, p99=2, largest=16)


def test_flip() -> None:
    images = squares(2)
    views = run_on_pixels(PLAIN, images, flip=np.int32([0, 1]))
    assert difference(views, [images[0], images[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT)]) == (0, 0, 0)


# 3-Augment and jitter

THREE = Augment(color_jitter=0.0)
JITTER = Augment(policy="none")


@pytest.mark.parametrize(("operation", "mean", "largest"), [(0, 0.002, 1), (1, 0, 0)])
def test_greyscale_and_solarise(operation: int, mean: float, largest: float) -> None:
    images = squares(6)
    views = run_on_pixels(THREE, images, operation=np.full(6, operation, np.int32))
    assert_close(views, [oracle.three_augment(i, operation, 1.0) for i in images], mean, 0, largest)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 0.8, 1.0, 1.3, 1.6, 1.99])
def test_blur(sigma: float) -> None:
    """PIL approximates the Gaussian by three boxes; 0.1 leaves the image alone in both."""
    images = squares(4)
    views = run_on_pixels(THREE, images, operation=np.full(4, 2, np.int32), sigma=np.full(4, sigma, np.float32))
    expected = [oracle.three_augment(i, 2, sigma) for i in images]
    assert_close(views, expected, *((0, 0, 0) if sigma == 0.1 else (0.8, 8, 48)))
    if sigma >= 0.5:
        assert difference(views, images)[0] > 2 * difference(views, expected)[0]  # it blurs, and as much as PIL


def test_each_image_gets_its_own_operation() -> None:
    images = squares(3)
    views = run_on_pixels(THREE, images, operation=np.int32([2, 0, 1]), sigma=np.float32([1.5, 1, 1]))
    for place, operation in enumerate((2, 0, 1)):
        expected = [oracle.three_augment(images[place], operation, 1.5)]
        assert difference(views[place : place + 1], expected)[0] < 1


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("factor", [0.7, 0.93, 1.3])
def test_one_jitter_operation(kind: int, factor: float) -> None:
    """At most 1 off, where a product is an integer but for float32 noise: often for 1.3 x brightness, else hardly."""
    images = squares(4)
    factors = np.ones(3, np.float32)
    factors[kind] = factor
    views = run_on_pixels(JITTER, images, jitter=np.tile(factors, (4, 1)))
    assert_close(views, [oracle.color_jitter(i, factors, [kind]) for i in images], mean=0.03, p99=1, largest=1)


def test_jitter_in_all_orders() -> None:
    images, orders = squares(6), np.int32(list(permutations(range(3))))
    jitter = np.random.default_rng(0).uniform(0.7, 1.3, (6, 3)).astype(np.float32)
    views = run_on_pixels(JITTER, images, jitter=jitter, order=orders)
    expected = [oracle.color_jitter(*each) for each in zip(images, jitter, orders, strict=True)]
    assert_close(views, expected, mean=0.01, p99=0, largest=3)
    wrong = [oracle.color_jitter(*each) for each in zip(images, jitter, orders[::-1], strict=True)]
    assert difference(views, wrong)[0] > 0.1


def test_the_tolerances_tell_wrong_graphs_apart(photographs: Encoded) -> None:
    """Contrast about mid-grey, and a resize without antialiasing, are far outside what is allowed above."""
    dali = import_dali()
    fn, types = dali.fn, dali.types
    images = squares(4)
    pixels = np.stack([np.asarray(image) for image in images])

    @dali.pipeline_def(batch_size=4, num_threads=1, device_id=None)
    def wrong() -> object:
        square = fn.external_source(lambda: pixels, batch=True, layout="HWC")
        photo = fn.decoders.image(fn.external_source(lambda: photographs[2:], batch=True), device="cpu")
        return (
            fn.brightness_contrast(square, contrast=0.7),
            fn.resize(photo, size=[SIZE, SIZE], interp_type=types.INTERP_CUBIC, antialias=False),
        )

    contrast, aliased = (np.stack([np.asarray(image) for image in output]) for output in wrong().run())
    assert difference(contrast, [oracle.color_jitter(i, (1, 0.7, 1), [1]) for i in images])[0] > 1
    whole = [oracle.decode(e).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for e in photographs[2:]]
    assert difference(aliased, whole)[0] > 0.6


# The hand-over


def test_views_are_channels_last_without_a_copy_and_stay_valid() -> None:
    images = [encode(image, format="PNG") for image in squares(4)]
    batches = iter([images, *([images[::-1]] * 8)])
    augment = Augment()
    drawn = params(4, operation=np.zeros(4, np.int32))
    pipeline = train_pipeline(augment, SIZE, lambda: train_inputs(augment, SIZE, next(batches), drawn), 4, CPU, 1)
    held = pipeline.run()
    assert held.dtype == torch.uint8
    assert held.shape == (4, 3, SIZE, SIZE)
    assert held.stride() == (3 * SIZE * SIZE, 1, 3 * SIZE, 3)
    assert held.is_contiguous(memory_format=torch.channels_last)
    before = held.clone()
    later = [pipeline.run() for _ in range(5)]
    assert torch.equal(held, before)
    assert all(torch.equal(batch, before.flip(0)) for batch in later)
    assert len({batch.data_ptr() for batch in (held, *later)}) == 6


def test_the_handover_shares_dalis_memory() -> None:
    augment = PLAIN
    inputs = train_inputs(augment, SIZE, [encode(squares(1)[0])], params(1))
    pipeline = train_pipeline(augment, SIZE, lambda: inputs, 1, CPU, 1)
    seen: list[int] = []
    original = pipeline._pipeline.run

    def spy() -> object:
        outputs = original()
        seen.append(outputs[0].as_tensor().data_ptr())
        return outputs

    pipeline._pipeline.run = spy
    assert pipeline.run().data_ptr() == seen[0]


def test_missing_dali_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nvidia.dali", None)
    with pytest.raises(RuntimeError, match=r"nvidia-dali is not installed: pip install 'deit_fast\[cuda12\]'") as error:
        import_dali()
    assert "\n" not in str(error.value)


def test_thread_count_changes_no_pixel(photographs: Encoded) -> None:
    augment = Augment()
    drawn = params(6, operation=np.int32([0, 1, 2] * 2), jitter=np.full((6, 3), 1.2, np.float32))
    inputs = train_inputs(augment, SIZE, photographs, drawn)
    one, three = (train_pipeline(augment, SIZE, lambda: inputs, 6, CPU, threads).run() for threads in (1, 3))
    assert torch.equal(one, three)


@pytest.mark.parametrize(
    "augment",
    [Augment(), Augment(crop="src"), Augment(policy="rand_augment", color_jitter=0.0)],
    ids=["rrc", "src", "rand_augment"],
)
def test_the_gpu_graph_can_be_defined(augment: Augment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU nothing runs, but DALI checks in the definition already that predicates are on the CPU."""
    defined = []
    monkeypatch.setattr(import_dali().Pipeline, "build", lambda self: defined.append(self))
    train_pipeline(augment, SIZE, lambda: [], 4, torch.device("cuda", 0), threads=1)
    assert [output.device for output in defined[0]._graph_out] == ["gpu"]


@pytest.mark.gpu
@pytest.mark.parametrize("policy", ["three_augment", "rand_augment"])
def test_gpu_equals_cpu(photographs: Encoded, policy: str) -> None:
    """nvJPEG and the GPU's resize round differently from the CPU's; a wrong operation would differ by tens."""
    augment = Augment(policy=policy, color_jitter=0.3 if policy == "three_augment" else 0.0)  # type: ignore[arg-type]
    encoded = photographs * 5
    rng = np.random.default_rng(0)
    drawn = params(
        30,
        geometry=np.tile(np.int32([3, 5, 70, 60]), (30, 1)),
        flip=np.arange(30, dtype=np.int32) % 2,
        operation=np.arange(30, dtype=np.int32) % 3,
        jitter=rng.uniform(0.7, 1.3, (30, 3)).astype(np.float32),
        order=np.int32(list(permutations(range(3))) * 5),
        rand_op=np.stack([np.arange(30) % 15, np.full(30, -1)], axis=1).astype(np.int32),
        rand_magnitude=np.full((30, 2), 9, np.float32),
    )
    cpu, gpu = (run(augment, encoded, drawn, device=torch.device(name)) for name in ("cpu", "cuda"))
    gap = np.abs(cpu.astype(int) - gpu.astype(int)).mean(axis=(1, 2, 3))
    assert np.median(gap) < 1.5, gap
    assert gap.max() < 8, gap


def test_real_photographs(shared_data: Path) -> None:
    paths = sorted((shared_data / "imagenet-sample").glob("*/*"))[:8]
    encoded = [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]
    images = [oracle.decode(e) for e in encoded]
    geometry = np.int32([[0, 0, image.height, image.width] for image in images])
    views = run(PLAIN, encoded, params(8, geometry=geometry), 224)
    expected = [oracle.resized_crop(i, g, 224) for i, g in zip(images, geometry, strict=True)]
    assert_close(views, expected, mean=0.2, p99=1, largest=12)
