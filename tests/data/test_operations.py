"""The operations of RandAugment and AutoAugment against timm and PIL. Differences are of uint8 values, 0 to 255."""

import re
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.stats import chisquare
from timm.data import auto_augment

from deit_fast.data.augment.operations.point import change_tables
from deit_fast.data.augment.policies import AUTO_POLICY, OPERATIONS, RAND_OPERATIONS
from deit_fast.data.augment.policy_graph import find_operations
from deit_fast.data.loader.pipeline import train_pipeline
from deit_fast.recipe.sections import Augment
from deit_fast.runtime.errors import RecipeError
from tests.oracles import operations as oracle
from tests.views import CPU, difference, encode, params, photograph, run, run_on_pixels, views_of

SIZE = 64
RAND = Augment(policy="rand_augment", color_jitter=0.0)

# Measured on these images: mean, 99th percentile, maximum.
_EXACT = (0.0, 0.0, 0.0)
_ROUNDING = (0.03, 1.0, 1.0)  # float32 puts a value just under an integer, and truncation does the rest
_WARP = (0.1, 0.0, 255.0)  # a few pixels whose coordinate is on a pixel's edge up to float32
TOLERANCE = {
    "AutoContrast": _ROUNDING,
    "Equalize": (0.35, 1.0, 1.0),
    "Rotate": _WARP,
    "ColorIncreasing": _ROUNDING,
    "ContrastIncreasing": _ROUNDING,
    "BrightnessIncreasing": _ROUNDING,
    "SharpnessIncreasing": _ROUNDING,
    "Color": _ROUNDING,
    "Contrast": _ROUNDING,
    "Sharpness": _ROUNDING,
    "ShearX": _WARP,
    "ShearY": _WARP,
    "TranslateXRel": _WARP,
    "TranslateYRel": _WARP,
}


def apply(images: list[Image.Image], ops: object, magnitudes: object, signs: object) -> np.ndarray:
    """ops, magnitudes, signs: [B, 2]."""
    return run_on_pixels(
        RAND,
        images,
        policy_op=np.asarray(ops, np.int32),
        policy_level=np.asarray(magnitudes, np.float32),
        policy_sign=np.asarray(signs, np.float32),
    )


def test_the_operations_are_timms() -> None:
    assert tuple(auto_augment._RAND_INCREASING_TRANSFORMS) == RAND_OPERATIONS
    ids = {name for pair in AUTO_POLICY for name, _, _ in pair}
    assert ids <= set(OPERATIONS) <= ids | set(RAND_OPERATIONS)


@pytest.mark.parametrize("op", range(len(OPERATIONS)), ids=OPERATIONS)
def test_one_operation(op: int) -> None:
    levels = np.repeat(np.float32([0.0, 2.7, 7.9, 8.6, 9.03, 10.0]), 2)
    signs = np.tile(np.float32([1, -1]), 6)
    images = [photograph(seed, SIZE, SIZE) for seed in range(12)]
    skipped = np.full(12, -1)
    ones = np.ones(12)
    views = apply(
        images, np.stack([np.full(12, op), skipped], 1), np.stack([levels, ones], 1), np.stack([signs, ones], 1)
    )
    expected = [oracle.apply(i, OPERATIONS[op], float(m), s) for i, m, s in zip(images, levels, signs, strict=True)]
    found = difference(views, expected)
    assert all(np.array(found) <= TOLERANCE.get(OPERATIONS[op], _EXACT)), found


def test_all_operations_in_one_batch_and_in_sequence() -> None:
    """Every image takes its own two operations, the second on the result of the first."""
    images = [photograph(seed, SIZE, SIZE) for seed in range(16)]
    ops = np.array([[op, (op + 9) % 15] for op in range(15)] + [[-1, -1]])
    levels, signs = np.full((16, 2), 9.2, np.float32), np.where(ops % 2, 1.0, -1.0)
    views = apply(images, ops, levels, signs)
    for place, (image, pair) in enumerate(zip(images, ops, strict=True)):
        expected = image
        for step, op in enumerate(pair):
            if op >= 0:
                expected = oracle.apply(expected, OPERATIONS[op], float(levels[0, 0]), signs[place, step])
        # Solarising turns a difference of 1 at the threshold into one of 255 in a few pixels.
        assert difference(views[place : place + 1], [expected])[0] < 1, (OPERATIONS[pair[0]], OPERATIONS[pair[1]])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_auto_contrast_in_every_place(count: int) -> None:
    """Its stage lies between two steps: it is applied where it was drawn, be it before, after, twice or alone."""
    names = list(product(("AutoContrast", "SolarizeAdd", None), repeat=count))
    images = [Image.fromarray(np.asarray(photograph(seed, SIZE, SIZE)) // 3 + 20) for seed in range(len(names))]
    ops = np.int32([[OPERATIONS.index(name) if name else -1 for name in each] for each in names])
    augment = Augment(policy="rand_augment", color_jitter=0.0, rand_ops=count)
    given = {"policy_level": np.full(ops.shape, 9, np.float32), "policy_sign": np.ones(ops.shape, np.float32)}
    views = run_on_pixels(augment, images, policy_op=ops, **given)
    for place, (image, each) in enumerate(zip(images, names, strict=True)):
        expected = image
        for name in filter(None, each):
            expected = oracle.apply(expected, name, 9.0, 1.0)
        assert difference(views[place : place + 1], [expected])[0] < 0.3, each


@pytest.mark.parametrize("op", ["Invert", "PosterizeIncreasing", "PosterizeOriginal", "SolarizeIncreasing", "Solarize",
                                "SolarizeAdd"])  # fmt: skip
def test_tables_of_every_level(op: str) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    levels = np.arange(0, 10, 10 / 256).astype(np.float32)
    (operation,) = find_operations((op,))
    places = operation.arguments(levels.astype(np.float64), np.ones(256), 16)[:, 3].astype(int)
    for level, place in zip(levels, places, strict=True):
        expected = oracle.apply(Image.fromarray(np.stack([ramp] * 3, axis=2)), op, float(level), 1.0)
        np.testing.assert_array_equal(change_tables().ravel()[ramp ^ place], np.asarray(expected)[:, :, 0])


@pytest.mark.parametrize("op", ["AutoContrast", "Equalize", "SharpnessIncreasing"])
def test_flat_and_two_tone_images(op: str) -> None:
    """Histograms with one or two levels: PIL leaves a flat channel alone."""
    flat = Image.new("RGB", (SIZE, SIZE), (0, 90, 255))
    two = flat.copy()
    two.paste((10, 91, 255), (0, 0, SIZE, SIZE // 3))
    number = OPERATIONS.index(op)
    views = apply([flat, two], [[number, -1]] * 2, [[9, 0]] * 2, [[1, 1]] * 2)
    assert difference(views, [oracle.apply(i, op, 9.0, 1.0) for i in (flat, two)])[2] <= 1


def test_geometric_operations_are_bicubic() -> None:
    """Linear interpolation, all that DALI's own warp has, would be far outside the tolerance."""
    image = photograph(0, SIZE, SIZE)
    linear = image.rotate(27, resample=Image.Resampling.BILINEAR, fillcolor=(124, 116, 104))
    rotated = apply([image], [[OPERATIONS.index("Rotate"), -1]], [[9, 0]], [[1, 1]])
    assert difference(rotated, [linear])[0] > 10 * _WARP[0]


def test_sharpness_border_is_copied() -> None:
    """A smoothing that reflects at the border, as DALI's filter does by itself, would change the border."""
    image = photograph(1, SIZE, SIZE)
    number = OPERATIONS.index("SharpnessIncreasing")
    view = apply([image], [[number, -1]], [[9, 0]], [[-1, 1]])[0]
    pixels = np.asarray(image)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        np.testing.assert_array_equal(view[edge], pixels[edge])
    smooth = np.asarray(image.filter(ImageFilter.SMOOTH))
    assert (
        np.abs(view[1:-1, 1:-1].astype(int) - pixels[1:-1, 1:-1]).mean()
        > 0.5 * np.abs(smooth.astype(int) - pixels).mean()
    )


# What timm's argument is of ours: of an affine map row by row, of threshold, mask and addend, of a factor.
VALUE = {
    "Rotate": lambda cos, _, __, sin, *rest: np.rad2deg(np.arctan2(sin, cos)),
    "ShearX": lambda xx, xy, *rest: xy,
    "ShearY": lambda xx, xy, x, yx, *rest: yx,
    "TranslateXRel": lambda xx, xy, x, *rest: x / 224,
    "TranslateYRel": lambda xx, xy, x, yx, yy, y, *rest: y / 224,
    "PosterizeIncreasing": lambda threshold, mask, *rest: np.log2(256 / (256 - mask)),
    "PosterizeOriginal": lambda threshold, mask, *rest: np.log2(256 / (256 - mask)),
    "SolarizeAdd": lambda threshold, mask, addend, *rest: addend,
}


@pytest.mark.parametrize("op", range(len(OPERATIONS)), ids=OPERATIONS)
def test_levels_become_timms_arguments(op: int) -> None:
    """The whole range of levels, at once, against timm's functions one by one."""
    levels = np.linspace(0, 10, 201)
    to_argument = auto_augment.LEVEL_TO_ARG[OPERATIONS[op]]
    if to_argument is None:
        pytest.skip(f"{OPERATIONS[op]} has no argument")
    for sign in (1.0, -1.0):
        (operation,) = find_operations((OPERATIONS[op],))
        ours = operation.arguments(levels, np.full_like(levels, sign), 224).T
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(auto_augment.random, "random", lambda sign=sign: 0.25 if sign > 0 else 0.75)
            theirs = np.array([to_argument(float(level), {})[0] for level in levels])
        value = VALUE.get(OPERATIONS[op], lambda first, *_: first)(*ours)
        np.testing.assert_allclose(value, theirs, rtol=1e-5, atol=1e-5)


def test_every_sub_policy_of_auto_augment() -> None:
    """The pairs, whole, against the operations that timm applies, in the sizes of training; all signs."""
    size, policy = 224, auto_augment.auto_augment_policy_original({})
    signs = np.float32([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    images = [photograph(seed, size, size) for seed in range(4)]
    drawn = params(
        4 * len(policy),
        geometry=np.tile(np.int32([0, 0, size, size]), (4 * len(policy), 1)),
        policy_op=np.repeat(np.int32([[OPERATIONS.index(op.name) for op in pair] for pair in policy]), 4, axis=0),
        policy_level=np.repeat(np.float32([[op.magnitude for op in pair] for pair in policy]), 4, axis=0),
        policy_sign=np.tile(signs, (len(policy), 1)),
    )
    encoded = [encode(image, format="PNG") for image in images] * len(policy)
    views = run(Augment(policy="auto_augment", color_jitter=0.0), encoded, drawn, size).reshape(-1, 4, size, size, 3)
    for number, pair in enumerate(policy):
        expected = []
        for image, row in zip(images, signs, strict=True):
            done = image
            for op, sign in zip(pair, row, strict=True):
                done = oracle.apply(done, op.name, op.magnitude, sign)
            expected.append(done)
        mean, p99, _ = difference(views[number], expected)
        # Off by 1 where Equalize or rounding is, and by a step of Posterize (4 at 6 bits) where one follows.
        assert mean < 0.7, (number, pair, mean)
        assert p99 <= 4, (number, pair, p99)
        assert difference(views[number], images)[0] > 10 * mean, (number, pair)


def test_skipping_changes_nothing() -> None:
    images = [photograph(seed, SIZE, SIZE) for seed in range(3)]
    assert difference(apply(images, np.full((3, 2), -1), np.full((3, 2), 9), np.ones((3, 2))), images) == _EXACT


def test_rand_augment_draws_from_the_extra_operations_too() -> None:
    plain, more = (views_of(Augment(policy="rand_augment", color_jitter=0.0, rand_extra=extra)) for extra in
                   ((), ("Solarize", "Color")))  # fmt: skip
    drawn, counts = np.unique(more.policy_op[more.policy_op >= 0], return_counts=True)
    assert drawn.tolist() == [*range(15), 20, 21]  # what AutoAugment alone has keeps its numbers
    assert chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(plain.policy_op < 0, more.policy_op < 0)
    np.testing.assert_array_equal(plain.policy_level, more.policy_level)


def test_an_extra_operation_is_applied_by_its_name() -> None:
    image = photograph(3, SIZE, SIZE)
    extra = Augment(policy="rand_augment", color_jitter=0.0, rand_extra=("Solarize",))
    number, level = len(OPERATIONS), np.float32([[4, 0]])
    view = run_on_pixels(extra, [image], policy_op=np.int32([[number, -1]]), policy_level=level)
    assert difference(view, [oracle.apply(image, "Solarize", 4.0, 1.0)]) == _EXACT


@pytest.mark.parametrize("name", ["Solarise", "Invert"])
def test_an_extra_operation_that_cannot_be_is_refused(name: str) -> None:
    augment = Augment(policy="rand_augment", color_jitter=0.0, rand_extra=(name,))
    others = "Color, Contrast, PosterizeOriginal, Sharpness, Solarize"
    message = f"augment.rand_extra: expected operations beyond RandAugment's ({others}), got {name!r}"
    with pytest.raises(RecipeError, match=f"^{re.escape(message)}$"):
        train_pipeline(augment, SIZE, lambda: [], 1, CPU, threads=1)
