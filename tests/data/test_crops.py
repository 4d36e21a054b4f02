"""Decoding and crops of the image graph against PIL and torchvision. Differences are of uint8 values, 0 to 255."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_fast.data.augment.view_params import eval_geometry
from deit_fast.data.loader.pipeline import eval_pipeline
from tests.oracles import three_augment as oracle
from tests.views import (
    CPU,
    PLAIN,
    SIZE,
    Encoded,
    assert_close,
    difference,
    encode,
    params,
    photograph,
    run,
)


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


@pytest.mark.parametrize("crop", ["rrc", "rrc_linear", "src", "center"])
def test_resize_kernels(photographs: Encoded, crop: str) -> None:
    """Bilinear everywhere, then each image its own kernel, as PIL's, antialiased; the other kernel is another image."""
    window = crop.startswith("rrc")
    kernels = {0: Image.Resampling.BICUBIC, 1: Image.Resampling.BILINEAR}
    images = [oracle.decode(e) for e in photographs]
    sizes = np.int32([image.size[::-1] for image in images])
    geometry = np.concatenate((0 * sizes, sizes), axis=1) if window else eval_geometry(sizes, SIZE, 1.0)
    for interpolation, chosen in (("bilinear", [1] * 6), ("random", [0, 1, 0, 1, 1, 0])):
        augment = PLAIN.model_copy(update={"crop": crop, "interpolation": interpolation})
        views = run(augment, photographs, params(6, geometry=geometry, interpolation=np.int32(chosen)))

        def expected(kernel: int, place: int) -> Image.Image:
            if window:
                return oracle.resized_crop(images[place], geometry[place], SIZE, kernels[kernel])
            height, width, top, left = geometry[place].tolist()
            resized = images[place].resize((width, height), kernels[kernel])
            return resized.crop((left, top, left + SIZE, top + SIZE))

        assert_close(views, [expected(kernel, place) for place, kernel in enumerate(chosen)], 0.3, 2, 16)
        for place, kernel in enumerate(chosen):
            if min(images[place].size) > SIZE + 30:  # resizing by little, the kernels agree
                assert difference(views[place : place + 1], [expected(1 - kernel, place)])[0] > 0.5


def test_padded_crop(photographs: Encoded) -> None:
    """Black borders, at the top left and the bottom right; an image of the right size is moved, not resized."""
    images = [oracle.decode(e) for e in photographs]
    pad = PLAIN.model_copy(update={"crop": "pad"})
    resized = [eval_geometry(np.int32([image.size[::-1]]), SIZE, 1.0)[0, :2] for image in images]
    for corner in (np.minimum, np.maximum):
        geometry = np.int32([np.concatenate((hw, corner(-4 + 0 * hw, hw - SIZE + 4))) for hw in resized])
        views = run(pad, photographs, params(6, geometry=geometry))
        expected = [oracle.simple_random_crop(i, g, SIZE, "constant") for i, g in zip(images, geometry, strict=True)]
        assert_close(views, expected, mean=0.3, p99=2, largest=16)
    image = encode(photograph(0, 32, 32), format="PNG")
    view = run(pad, [image], params(1, geometry=np.int32([[32, 32, -4, 3]])), size=32)[0]
    assert not view[:4].any()
    assert not view[:, -3:].any()
    np.testing.assert_array_equal(view[4:, :-3], np.asarray(oracle.decode(image))[:-4, 3:])


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
    assert_close(views, [oracle.evaluation_view(i, SIZE, crop_ratio) for i in images], mean=0.05, p99=1, largest=6)


def test_real_photographs(shared_data: Path) -> None:
    paths = sorted((shared_data / "imagenet-sample").glob("*/*"))[:8]
    encoded = [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]
    images = [oracle.decode(e) for e in encoded]
    geometry = np.int32([[0, 0, image.height, image.width] for image in images])
    views = run(PLAIN, encoded, params(8, geometry=geometry), 224)
    expected = [oracle.resized_crop(i, g, 224) for i, g in zip(images, geometry, strict=True)]
    assert_close(views, expected, mean=0.05, p99=1, largest=6)
