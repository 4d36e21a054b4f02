"""Where crops lie, against torchvision and plain arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare, ks_2samp
from torchvision.transforms import RandomResizedCrop, Resize
from torchvision.transforms import functional as F

from deit_fast.data.augment import view_params as crops
from deit_fast.data.augment.view_params import eval_geometry
from deit_fast.recipe.sections import Augment
from tests.oracles.crop import fitting_crop, resized_crop
from tests.views import sizes_of, views_of


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 1), st.floats(0.2, 1), st.integers(0, 1000))
def test_resized_crop_equals_the_slow_one(height: int, width: int, low: float, narrow: float, seed: int) -> None:
    draws = np.random.default_rng(seed).random((4, 22))
    augment = Augment(scale=(low, 1.0), ratio=(narrow, 1 / narrow))
    fast = crops._resized_crop(augment, sizes_of(4, height, width), draws)
    slow = [resized_crop(height, width, augment.scale, augment.ratio, row) for row in draws.tolist()]
    assert [tuple(row) for row in fast.tolist()] == slow
    assert (fast[:, :2] >= 0).all()
    assert (fast[:, 2:] >= 1).all()
    assert (fast[:, :2] + fast[:, 2:] <= [height, width]).all()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (32, 32), (200, 900)])
def test_resized_crop_is_distributed_like_torchvision(height: int, width: int) -> None:
    torch.manual_seed(0)
    count = 4000
    image = torch.empty(3, height, width, device="meta")
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    ours = views_of(Augment(), count, sizes=sizes_of(count, height, width))
    for measure in (
        lambda crop: crop[:, 2] * crop[:, 3],
        lambda crop: crop[:, 3] / crop[:, 2],
        lambda crop: crop[:, 0],
        lambda crop: crop[:, 1],
        lambda crop: crop[:, 0] / np.maximum(height - crop[:, 2], 1),
        lambda crop: crop[:, 1] / np.maximum(width - crop[:, 3], 1),
    ):
        assert ks_2samp(measure(ours.geometry), measure(theirs)).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (37, 411), (411, 37), (1, 50), (50, 3), (99, 7)])
def test_resized_crop_falls_back_as_torchvision_does(height: int, width: int) -> None:
    scale = (0.95, 1.0)  # nothing within the aspect range is that large
    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width, device="meta"), list(scale), [3 / 4, 4 / 3])
    ours = views_of(Augment(scale=scale), 3, sizes=sizes_of(3, height, width))
    assert ours.geometry.tolist() == [list(theirs)] * 3


def test_simple_random_crop_covers_every_window_evenly() -> None:
    count = 20_000
    drawn = views_of(Augment(crop="src"), count, image_size=32, sizes=sizes_of(count, 100, 141)).geometry
    assert (drawn[:, :2] == [32, 45]).all()  # int(32 * 141 / 100)
    rows, columns = np.bincount(drawn[:, 2] + 4), np.bincount(drawn[:, 3] + 4)
    assert (len(rows), len(columns)) == (9, 45 - 32 + 9)
    assert chisquare(rows).pvalue > 1e-5
    assert chisquare(columns).pvalue > 1e-5
    tall = views_of(Augment(crop="src"), 3, image_size=32, sizes=sizes_of(3, 141, 100)).geometry
    assert (tall[:, :2] == [45, 32]).all()


@pytest.mark.parametrize(("image_size", "ratio"), [(224, 1.0), (224, 0.875), (384, 0.875), (32, 0.9), (160, 1.0)])
def test_evaluation_geometry_equals_torchvision(image_size: int, ratio: float) -> None:
    random = np.random.default_rng(image_size)
    sizes = random.integers(1, 1200, (120, 2)).astype(np.int32)
    sizes[:40] = random.integers(300, 520, (40, 2))
    sizes[np.maximum(*sizes.T) > 12 * np.minimum(*sizes.T)] = 375, 500  # a test's memory is bounded
    ours = eval_geometry(sizes, image_size, ratio)
    for (height, width), (resized_height, resized_width, top, left) in zip(sizes.tolist(), ours.tolist(), strict=True):
        target = int(image_size / ratio)
        assert F._compute_resized_output_size((height, width), [target]) == [resized_height, resized_width]
        place = torch.arange(resized_height * resized_width, dtype=torch.int32).view(1, resized_height, resized_width)
        window = F.center_crop(place, image_size)
        assert window.shape[1:] == (image_size, image_size)
        assert divmod(int(window[0, 0, 0]), resized_width) == (top, left)


def test_evaluation_geometry_equals_torchvision_on_an_image() -> None:
    image = Resize(256)(Image.new("RGB", (500, 333)))
    assert eval_geometry(np.array([[333, 500]], np.int32), 224, 0.875)[0, :2].tolist() == [image.height, image.width]


@given(st.integers(8, 3000), st.integers(8, 3000), st.floats(0.05, 1), st.floats(0.2, 1), st.integers(0, 1000))
def test_the_crop_that_always_fits_equals_the_slow_one(
    height: int, width: int, low: float, narrow: float, seed: int
) -> None:
    draws = np.random.default_rng(seed).random((4, crops.CROP_DRAWS))
    augment = Augment(crop="rrc_linear", scale=(low, 1.0), ratio=(narrow, 1 / narrow))
    fast = crops.crop_geometry(augment, 224, sizes_of(4, height, width), draws)
    slow = [fitting_crop(height, width, augment.scale, augment.ratio, row) for row in draws.tolist()]
    # A side that fills the image is truncated from one float above or below it: one pixel, and one of the corner's.
    assert np.abs(fast - np.array(slow)).max() <= 1
    assert (fast[:, :2] >= 0).all()
    assert (fast[:, 2:] >= 1).all()
    assert (fast[:, :2] + fast[:, 2:] <= [height, width]).all()


def test_the_crop_that_always_fits_is_not_torchvisions() -> None:
    """A uniform aspect ratio, and crops of a narrow image that fill it instead of falling back to its centre."""
    square = sizes_of(20_000, 400, 400)
    ours, log = (views_of(Augment(crop=crop), sizes=square) for crop in ("rrc_linear", "rrc"))  # type: ignore[arg-type]
    ratio = ours.geometry[:, 3] / ours.geometry[:, 2]
    uniform = np.random.default_rng(0).uniform(3 / 4, 4 / 3, 20_000)
    assert ks_2samp(ratio, uniform).pvalue > 1e-3
    assert ks_2samp(log.geometry[:, 3] / log.geometry[:, 2], uniform).pvalue < 1e-12
    narrow = views_of(Augment(crop="rrc_linear"), 2000, sizes=sizes_of(2000, 1000, 50)).geometry
    assert (narrow[:, 3] >= 49).all()
    assert narrow[:, 0].max() > 900
    assert narrow[:, 0].min() < 10


def test_padding_moves_windows_as_simple_random_crop_does() -> None:
    for sizes in (sizes_of(500, 32, 32), sizes_of(500, 100, 141)):
        pad, src = (views_of(Augment(crop=crop), 500, image_size=32, sizes=sizes).geometry for crop in ("pad", "src"))
        np.testing.assert_array_equal(pad, src)
    assert (views_of(Augment(crop="pad"), 9, image_size=32, sizes=sizes_of(9, 32, 32)).geometry[:, :2] == 32).all()


def test_center_is_the_evaluation_view() -> None:
    sizes = np.random.default_rng(0).integers(100, 500, (50, 2)).astype(np.int32)
    drawn = views_of(Augment(crop="center"), 50, sizes=sizes).geometry
    np.testing.assert_array_equal(drawn, eval_geometry(sizes, 224, 1.0))
