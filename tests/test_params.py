"""Random parameters: the generator against published vectors, the crops against torchvision."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop, Resize
from torchvision.transforms import functional as F

from deit_fast.data import params
from deit_fast.data.params import draw_views, eval_geometry
from deit_fast.data.philox import Stream, generator, normal, philox4x32, uniform
from deit_fast.sections import Augment
from tests.oracles.crop import resized_crop
from tests.oracles.philox import philox4x32 as slow_philox
from tests.oracles.statistics import kolmogorov_smirnov, uneven

# Random123's kat_vectors, "philox4x32 10".
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
MANY = np.arange(20_000)


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def sizes_of(count: int, height: int, width: int) -> np.ndarray:
    return np.tile(np.array([[height, width]], np.int32), (count, 1))


def views_of(augment: Augment, count: int = 20_000, **changes: Any) -> params.ViewParams:
    inputs: dict[str, Any] = {"image_size": 224, "seed": 3, "epoch": 1, "indices": np.arange(count)}
    inputs |= {"views": np.zeros(count, np.int64), "sizes": sizes_of(count, 375, 500)}
    return draw_views(augment, **(inputs | changes))


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_vectors(counter: str, key: str, answer: str) -> None:
    ours = philox4x32(np.array(words(counter), np.uint64)[:, None], tuple(words(key)))
    assert ours[:, 0].tolist() == words(answer) == slow_philox(words(counter), words(key))


def test_philox_equals_the_slow_one() -> None:
    counters = np.random.default_rng(0).integers(0, 2**32, (4, 50), np.uint64)
    fast = philox4x32(counters, (0x12345678, 0x9ABCDEF0))
    assert fast.T.tolist() == [slow_philox(counter, [0x12345678, 0x9ABCDEF0]) for counter in counters.T.tolist()]


def test_uniform_is_the_generator_at_a_documented_counter() -> None:
    seed, epoch = -5, 7
    drawn = uniform(seed, Stream.JITTER, epoch, np.array([1_281_166]), np.array([2]), 6)
    key = [seed % 2**32, seed % 2**64 >> 32]
    blocks = [slow_philox([1_281_166, 2, epoch, (Stream.JITTER << 16) + block], key) for block in range(2)]
    assert drawn[0].tolist() == [word / 2**32 for word in (blocks[0] + blocks[1])[:6]]


def test_uniform_is_even_and_uncorrelated() -> None:
    drawn = uniform(0, Stream.CROP, 0, MANY, MANY % 3, 8)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(uneven(np.histogram(drawn, 100, (0, 1))[0])) < 5
    others = [
        uniform(1, Stream.CROP, 0, MANY, MANY % 3, 8),
        uniform(0, Stream.FLIP, 0, MANY, MANY % 3, 8),
        uniform(0, Stream.CROP, 1, MANY, MANY % 3, 8),
        uniform(0, Stream.CROP, 0, MANY + 1, MANY % 3, 8),
        uniform(0, Stream.CROP, 0, MANY, MANY % 3 + 1, 8),
    ]
    correlation = np.corrcoef(np.concatenate([drawn, *others], axis=1).T) - np.eye(48)
    assert np.abs(correlation).max() < 5 / math.sqrt(len(MANY))


def test_normal_has_the_normal_distribution() -> None:
    drawn = normal(0, Stream.MAGNITUDE, 0, MANY, MANY * 0, 2)
    reference = np.random.default_rng(0).standard_normal(40_000)
    assert kolmogorov_smirnov(drawn.ravel(), reference) < 1.95
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 5 / math.sqrt(len(MANY))
    assert np.isfinite(drawn).all()


def test_generator_depends_on_every_word_of_its_key() -> None:
    keys = [
        (0, Stream.MIX, 0, 0),
        (1, Stream.MIX, 0, 0),
        (0, Stream.ORDER, 0, 0),
        (0, Stream.MIX, 1, 0),
        (0, Stream.MIX, 0, 1),
    ]
    assert len({generator(*key).random() for key in keys}) == len(keys)
    assert generator(-1, Stream.MIX, 5).random() == generator(-1, Stream.MIX, 5).random()


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 1), st.floats(0.2, 1), st.integers(0, 1000))
def test_resized_crop_equals_the_slow_one(height: int, width: int, low: float, narrow: float, seed: int) -> None:
    draws = np.random.default_rng(seed).random((4, 22))
    augment = Augment(scale=(low, 1.0), ratio=(narrow, 1 / narrow))
    fast = params._resized_crop(augment, sizes_of(4, height, width), draws)
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
        assert kolmogorov_smirnov(measure(ours.geometry), measure(theirs)) < 1.95


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
    assert abs(uneven(rows)) < 5
    assert abs(uneven(columns)) < 5
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


@pytest.mark.parametrize("policy", ["three_augment", "rand_augment"])
@pytest.mark.parametrize("crop", ["rrc", "src"])
def test_a_view_depends_on_nothing_but_its_key(policy: str, crop: str) -> None:
    augment = Augment.model_validate({"policy": policy, "crop": crop, "color_jitter": 0.0})
    indices, views = np.arange(60) // 3, np.arange(60) % 3
    sizes = np.random.default_rng(0).integers(100, 400, (60, 2)).astype(np.int32)
    whole = draw_views(augment, 224, 5, 2, indices, views, sizes)
    some = np.random.default_rng(1).permutation(60)[:17]
    part = draw_views(augment, 224, 5, 2, indices[some], views[some], sizes[some])
    for field, values in vars(whole).items():
        np.testing.assert_array_equal(values[some], getattr(part, field), err_msg=field)
    for change in ({"seed": 6}, {"epoch": 3}, {"views": views + 3}, {"indices": indices + 20}):
        inputs: dict[str, Any] = {"seed": 5, "epoch": 2, "indices": indices, "views": views, "sizes": sizes}
        other = views_of(augment, **(inputs | change))
        assert (other.geometry != whole.geometry).any(axis=1).mean() > 0.9, change


def test_three_augment_draws_have_the_reference_distribution() -> None:
    drawn = views_of(Augment())
    assert abs(uneven(np.bincount(drawn.operation, minlength=3))) < 5
    assert abs(uneven(np.histogram(drawn.sigma, 50, (0.1, 2.0))[0])) < 5
    assert abs(uneven(np.histogram(drawn.sigma[drawn.operation == params.BLUR], 20, (0.1, 2.0))[0])) < 5
    assert abs(drawn.flip.mean() - 0.5) < 0.02
    for factors in drawn.jitter.T:
        assert abs(uneven(np.histogram(factors, 50, (0.7, 1.3))[0])) < 5
    orders, counts = np.unique(drawn.order, axis=0, return_counts=True)
    assert [sorted(order) for order in orders.tolist()] == [[0, 1, 2]] * 6
    assert abs(uneven(counts)) < 5
    assert drawn.rand_op.shape == drawn.rand_magnitude.shape == drawn.rand_sign.shape == (20_000, 0)
    columns = np.column_stack(
        (drawn.geometry, drawn.flip, drawn.operation, drawn.sigma, drawn.jitter, drawn.order[:, 0])
    )
    correlation = np.corrcoef(columns.T.astype(np.float64))[4:, 4:]
    assert np.abs(correlation - np.eye(7)).max() < 5 / math.sqrt(20_000)


def test_rand_augment_draws_have_timms_distribution() -> None:
    drawn = views_of(Augment(policy="rand_augment", color_jitter=0.0, rand_ops=3, rand_magnitude=9.5))
    assert drawn.rand_op.shape == (20_000, 3)
    assert set(drawn.operation.tolist()) == {-1}
    assert (drawn.jitter == 1).all()
    assert abs((drawn.rand_op < 0).mean() - 0.5) < 0.01
    for op in drawn.rand_op.T:
        assert abs(uneven(np.bincount(op[op >= 0], minlength=15))) < 5
    assert abs(drawn.rand_sign.mean()) < 0.02
    assert set(np.unique(drawn.rand_sign)) == {-1.0, 1.0}
    reference = np.random.default_rng(0).normal(9.5, 0.5, 60_000).clip(0, 10)
    assert kolmogorov_smirnov(drawn.rand_magnitude.ravel(), reference) < 1.95
    assert np.abs(np.corrcoef(drawn.rand_op.T) - np.eye(3)).max() < 0.05


def test_settings_that_switch_off_leave_the_rest_alone() -> None:
    everything, less = views_of(Augment(), 500), views_of(Augment(flip=0.0, color_jitter=0.0, policy="none"), 500)
    np.testing.assert_array_equal(everything.geometry, less.geometry)
    assert not less.flip.any()
    assert (less.jitter == 1).all()
    assert (less.operation == -1).all()
    assert views_of(Augment(flip=1.0), 500).flip.all()


def test_dtypes_and_an_empty_batch() -> None:
    for count in (0, 5):
        drawn = views_of(Augment(policy="rand_augment", color_jitter=0.0), count)
        kinds = {name: (value.dtype.name, len(value)) for name, value in vars(drawn).items()}
        whole = ("geometry", "flip", "operation", "order", "rand_op")
        assert kinds == {name: ("int32" if name in whole else "float32", count) for name in kinds}
