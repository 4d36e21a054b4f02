"""One table: every kind of file at every door gives the same pixels, or is refused in the same words."""

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.loader.batches import TrainLoader
from deit_fast.data.loader.order import FullOrder
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.sources.pixels import UnknownPixels
from deit_fast.data.tools import write_shards
from deit_fast.data.tools.check import check_source
from deit_fast.infer.images import GivenImage, ImageList, readable_batches
from deit_fast.infer.predict import LoadedModel
from deit_fast.models.build import build_model
from deit_fast.recipe.sections import Augment
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import DataError, RunError, printable
from tests.hostile import Memory
from tests.image_kinds import (
    ALPHA,
    COLOUR,
    DEEP,
    GREY,
    SIDE,
    bmp_kinds,
    by_pil,
    meant,
    other_kinds,
    png_kinds,
    pnm_kinds,
    stored,
)
from tests.tiff_kinds import tiff, tiff_kinds

SMALL = 16
CPU = torch.device("cpu")
KINDS = {name: (content, expected) for kinds in (pnm_kinds, png_kinds, bmp_kinds, other_kinds, tiff_kinds)
         for name, content, expected in kinds()}  # fmt: skip
NAMES = list(KINDS)
SOURCE = Memory([content for content, _ in KINDS.values()])
RECIPE = get_recipe("demo_pretrain", [f"model.image_size={SIDE}", "data.eval_crop_ratio=1"])

Outcome = NDArray[np.uint8] | str  # pixels [SIDE, SIDE, 3], or why there are none


def through_training() -> list[Outcome]:
    """Windows, of the whole image, that the training loader decodes; all files in one batch."""
    augment = Augment(policy="none", color_jitter=0, flip=0, scale=(1, 1), ratio=(1, 1))
    samplers = [TrainSampler(FullOrder(len(SOURCE), 0), 1, len(SOURCE))]
    loader = TrainLoader(SOURCE, augment, SIDE, samplers, 0, CPU, 1, stop_step=1)
    (batch,) = loader
    pixels = batch.images.permute(0, 2, 3, 1).numpy()
    found: dict[int, Outcome] = dict(zip(batch.indices.tolist(), pixels, strict=True))
    found |= batch.bad
    return [found[index] for index in range(len(SOURCE))]


def through_check() -> list[Outcome]:
    """No pixels, but whether there are any."""
    bad = dict(check_source(SOURCE, threads=1).bad)
    return [bad.get(printable(SOURCE.name(index)), "") for index in range(len(SOURCE))]


def through_shards() -> list[Outcome]:
    """JPEG files of two thirds of the size."""
    write_shards._take(SOURCE)

    def write(index: int) -> Outcome:
        try:
            content, suffix, resized = write_shards._encoded(index, SMALL)
        except DataError as error:
            return str(error)
        assert resized
        assert suffix == ".jpg"
        return by_pil(content)

    return [write(index) for index in range(len(SOURCE))]


def through_prediction(images: Sequence[GivenImage]) -> list[Outcome]:
    """Pixels as `predict` gives them to the model."""
    found: dict[int, Outcome] = {}
    for indices, pixels in readable_batches(ImageList(images), RECIPE, 64, CPU, 1):
        given = [pixels] if isinstance(pixels, str) else pixels.permute(0, 2, 3, 1).numpy().copy()
        found |= zip(indices, given, strict=True)
    return [found[index] for index in range(len(images))]


def compare(name: str, found: Outcome, expected: object) -> None:
    if isinstance(expected, str):
        assert isinstance(found, str), f"{name}: pixels, expected to be refused: {expected}"
        assert expected in found
        assert "\n" not in found
    else:
        assert not isinstance(found, str), f"{name}: {found}"
        np.testing.assert_allclose(found, expected, rtol=0, atol=1, err_msg=name)


def test_files_have_the_same_pixels_or_are_refused_at_every_door(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number:03}.img" for number in range(len(KINDS))]
    for path, (content, _) in zip(paths, KINDS.values(), strict=True):
        path.write_bytes(content)
    doors = through_training(), through_check(), through_shards(), through_prediction(paths)
    for (name, (_, expected)), trained, checked, written, predicted in zip(KINDS.items(), *doors, strict=True):
        compare(f"{name} in training", trained, expected)
        compare(f"{name} in prediction", predicted, expected)
        assert isinstance(expected, str) == bool(checked), f"{name}: {checked}"
        if isinstance(expected, str):
            for text in (checked, written, predicted):
                assert trained in text  # the very words, behind the name of the file
            continue
        assert not isinstance(written, str), f"{name}: {written}"
        picture = Image.fromarray(np.rint(expected).astype(np.uint8)).resize((SMALL, SMALL), Image.Resampling.BICUBIC)
        again = by_pil(stored(picture, "JPEG", quality=write_shards.QUALITY))
        assert np.abs(written - again).mean() < 2, name


def test_pil_images_have_the_pixels_of_their_files() -> None:
    opened = {}
    for name, (content, _) in KINDS.items():
        with contextlib.suppress(OSError):  # where PIL has no image that could be given
            opened[name] = Image.open(io.BytesIO(content))
    found = through_prediction(list(opened.values()))
    for (name, image), each in zip(opened.items(), found, strict=True):
        content, expected = KINDS[name]
        if image.format in ("GIF", "JPEG2000") or name == "P7":  # not taken as a file, but as a picture
            expected = by_pil(content)
        compare(name, each, "pixels of PIL's mode F" if name == "Pf" else expected)


def modes() -> dict[str, tuple[Image.Image, object]]:
    colour, grey = Image.fromarray(COLOUR), Image.fromarray(GREY)
    few = colour.quantize(16)
    clear = few.copy()
    clear.info["transparency"] = 3
    veiled, veiled_grey = Image.fromarray(np.dstack([COLOUR, ALPHA])), Image.fromarray(np.dstack([GREY, ALPHA]))
    solid = np.full_like(ALPHA, 255)
    palette = np.array(few.getpalette()).reshape(-1, 3)[np.asarray(few)]
    deep = DEEP[..., 0]
    given: dict[str, tuple[Image.Image, object]] = {
        "1": (Image.fromarray(GREY > 127), meant(GREY > 127, 1)),
        "L": (grey, meant(GREY)),
        "LA": (veiled_grey, meant(GREY)),
        "La": (Image.fromarray(np.dstack([GREY, solid])).convert("La"), meant(GREY)),
        "P": (few, meant(palette)),
        "P transparent": (clear, meant(palette)),
        "PA": (few.convert("PA"), meant(palette)),
        "RGB": (colour, meant(COLOUR)),
        "RGBA": (veiled, meant(COLOUR)),
        "RGBa": (Image.fromarray(np.dstack([COLOUR, solid])).convert("RGBa"), meant(COLOUR)),
        "RGBX": (colour.convert("RGBX"), meant(COLOUR)),
        "CMYK": (colour.convert("CMYK"), meant(COLOUR)),
        "HSV": (Image.fromarray(np.dstack([solid // 3, solid // 255 - 1, GREY]), "HSV"), meant(GREY)),
        "YCbCr": (grey.convert("YCbCr"), meant(GREY)),
        "I;16": (Image.fromarray(deep), meant(deep, 65535)),
        "I;16B": (Image.frombytes("I;16B", grey.size, deep.astype(">u2").tobytes()), meant(deep, 65535)),
        "I": (Image.fromarray(GREY.astype(np.int32)), "pixels of PIL's mode I, of which white is not known"),
        "I deep": (Image.fromarray(deep.astype(np.int32)), "pixels of PIL's mode I, of which white is not known"),
        "F": (Image.fromarray(GREY.astype(np.float32)), "pixels of PIL's mode F, of which white is not known"),
        "F unit": (Image.fromarray(np.float32(GREY / 255)), "pixels of PIL's mode F, of which white is not known"),
        "LAB": (Image.new("LAB", grey.size), "pixels of PIL's mode LAB"),
    }
    return given


def test_every_mode_of_pil_at_every_door() -> None:
    images = modes()
    for name, found in zip(images, through_prediction([image for image, _ in images.values()]), strict=True):
        compare(name, found, images[name][1])
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (RECIPE.data.mean, RECIPE.data.std))
    model = LoadedModel(build_model(RECIPE.model), RECIPE, [], CPU)
    for name, (image, expected) in images.items():
        if isinstance(expected, str):
            with pytest.raises(UnknownPixels, match=re.escape(expected)):
                model.transform(image)
        else:
            seen = (model.transform(image) * std + mean) * 255
            np.testing.assert_allclose(seen.permute(1, 2, 0), expected, rtol=0, atol=1.01, err_msg=name)


def test_a_pil_image_that_cannot_be_decoded_costs_the_others_nothing() -> None:
    content = stored(Image.fromarray(COLOUR), "PNG")
    closed = Image.open(io.BytesIO(content))
    closed.close()
    cut, twice = Image.open(io.BytesIO(content[:-300])), Image.open(io.BytesIO(content))
    found = through_prediction([cut, twice, twice, closed, Image.new("RGB", (0, 5))])
    for number in (0, 3, 4):
        assert str(found[number]).startswith(f"image {number}: expected an image")
    compare("once", found[1], meant(COLOUR))
    compare("twice", found[2], meant(COLOUR))


def test_arrays_have_the_pixels_of_files() -> None:
    wide = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    wide[:, ::2] = COLOUR
    arrays: list[tuple[NDArray[np.generic], object]] = [
        (GREY, meant(GREY)),
        (GREY[..., None], meant(GREY)),
        (np.dstack([GREY, ALPHA]), meant(GREY)),
        (COLOUR, meant(COLOUR)),
        (np.dstack([COLOUR, ALPHA]), meant(COLOUR)),
        (GREY > 127, meant(GREY > 127, 1)),
        (DEEP, meant(DEEP, 65535)),
        (DEEP[..., 0], meant(DEEP[..., 0], 65535)),
        (DEEP.astype(">u2"), meant(DEEP, 65535)),
        (np.asfortranarray(COLOUR), meant(COLOUR)),
        (COLOUR[::-1, ::-1], meant(COLOUR[::-1, ::-1])),
        (wide[:, ::2], meant(COLOUR)),
    ]
    found = through_prediction([array for array, _ in arrays])
    for number, ((_, expected), each) in enumerate(zip(arrays, found, strict=True)):
        compare(f"array {number}", each, expected)


@pytest.mark.parametrize(
    "array",
    [
        (GREY / 255).astype(np.float32), np.full((SIDE, SIDE), np.nan), COLOUR.astype(np.float64), COLOUR.astype(int),
        COLOUR.astype(np.int8), COLOUR.astype(np.uint32), COLOUR.astype(object), COLOUR.transpose(2, 0, 1),
        COLOUR[None], COLOUR[0, 0], COLOUR[:0], np.zeros((SIDE, SIDE, 0), np.uint8),
        np.zeros((SIDE, SIDE, 5), np.uint8),
    ],
)  # fmt: skip
def test_other_arrays_are_refused(array: NDArray[np.generic]) -> None:
    kind = re.escape(f"got {array.dtype} {list(array.shape)}")
    with pytest.raises(RunError, match=rf"^image 1: expected uint8 \[H, W, 3\] or \[H, W\], {kind} "):
        ImageList([COLOUR, array])


@pytest.mark.parametrize("image", [None, b"\xff\xd8", torch.zeros(3, 8, 8), io.BytesIO()])
def test_what_is_no_image_is_refused(image: Any) -> None:
    with pytest.raises(RunError, match="image 0: expected a path, a PIL image or an array, got "):
        ImageList([image])


def test_the_size_of_a_turned_tiff_is_that_of_its_pixels() -> None:
    content = tiff(COLOUR[:, :10], 2, tags=[(274, 3, [6])])
    source = Memory([content])
    encoded, size = source.prepare(0, source.read(0))
    assert size == (10, SIDE)
    np.testing.assert_array_equal(by_pil(encoded.tobytes()), np.rot90(COLOUR[:, :10], -1))


def test_a_file_that_dali_reads_is_given_to_it_as_it_is() -> None:
    """Nearly all files are: no time is lost on them, and training on them is what it was."""
    for name in ("jpeg", "jpeg cmyk", "png RGBA", "webp", "bmp 24", "P6 of 255", "tiff deep RGB <", "tiff tiff_lzw"):
        source = Memory([KINDS[name][0]])
        stored_file = source.read(0)
        assert source.prepare(0, stored_file)[0] is stored_file, name
