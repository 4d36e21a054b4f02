"""Thousands of views of one photograph from DALI and from the references' own chains, compared as distributions.

The two share no random number and no code. Every measure of a case is a two-sample Kolmogorov-Smirnov test, every
share a chi-square test, each at a significance of ALPHA: some 80 tests, so that one of them would fail for one in
twelve choices of the seeds, which are fixed. The planted cases show the power: what is drawn from a wrong range, or
with a wrong probability, is found at PLANTED, a significance a thousand times stricter.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from deit_fast.data.augment.view_params import draw_views
from deit_fast.data.loader.pipeline import train_inputs, train_pipeline
from deit_fast.recipe.sections import Augment
from tests.oracles.chains import build_chain, views
from tests.oracles.statistics import same_shares
from tests.views import CPU, encode, photograph

COUNT, SIZE, BATCH = 2000, 48, 250
ALPHA, PLANTED = 1e-3, 1e-6
HEIGHT, WIDTH = 120, 160
Views = NDArray[np.uint8]


def augmented(augment: Augment, encoded: NDArray[np.uint8], height: int, width: int) -> Views:
    """COUNT views of one image from the training pipeline, [COUNT, S, S, 3]."""
    sizes = np.tile(np.int32([[height, width]]), (BATCH, 1))
    starts = iter(range(0, COUNT, BATCH))

    def feed() -> list[object]:
        indices = np.arange(BATCH) + next(starts)
        drawn = draw_views(augment, SIZE, 11, 0, indices, np.zeros(BATCH, np.int64), sizes)
        return train_inputs(augment, SIZE, [encoded] * BATCH, drawn)

    pipeline = train_pipeline(augment, SIZE, feed, BATCH, CPU, threads=1)
    return np.concatenate([pipeline.run().permute(0, 2, 3, 1).numpy() for _ in range(COUNT // BATCH)])


@functools.cache
def gradient() -> Image.Image:
    """Red is the column and green the row, so that a view shows where it was cut from."""
    columns, rows = np.meshgrid(np.linspace(0, 255, WIDTH), np.linspace(0, 255, HEIGHT))
    return Image.fromarray(np.stack((columns, rows, 0 * rows), axis=-1).round().astype(np.uint8))


# Measures: views -> a number per view


def _luma(images: Views) -> NDArray[np.float32]:
    return images.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])


def appearance(images: Views) -> dict[str, NDArray[np.float32]]:
    grey = _luma(images)
    inner = np.s_[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return {
        "mean": images.mean(axis=(1, 2, 3)),
        "contrast": grey.std(axis=(1, 2)),
        "saturation": (images.max(axis=3) - images.min(axis=3)).mean(axis=(1, 2)),
        "sharpness": np.abs(4 * grey[inner] - around).mean(axis=(1, 2)),
    }


def geometry(images: Views) -> dict[str, NDArray[np.float32]]:
    """Of views of `gradient`: sides in pixels of the image, from the slopes; centres, from the means."""
    half = SIZE // 2
    values = images.astype(np.float32)
    across = values[:, :, half:, 0].mean(axis=(1, 2)) - values[:, :, :half, 0].mean(axis=(1, 2))
    down = values[:, half:, :, 1].mean(axis=(1, 2)) - values[:, :half, :, 1].mean(axis=(1, 2))
    width, height = 2 * np.abs(across) / 255 * WIDTH, 2 * down / 255 * HEIGHT
    return {
        "area": width * height,
        "aspect": width / height,
        "column": values[..., 0].mean(axis=(1, 2)),
        "row": values[..., 1].mean(axis=(1, 2)),
    }


def smallest_p(
    measure: Callable[[Views], dict[str, NDArray[np.float32]]], ours: Views, theirs: Views
) -> tuple[float, dict[str, float]]:
    """The smallest p of the measures, and all of them."""
    first, second = measure(ours), measure(theirs)
    found = {name: float(stats.ks_2samp(first[name], second[name]).pvalue) for name in first}
    return min(found.values()), found


@functools.cache
def ours(augment: Augment, gradients: bool = False) -> Views:
    image = gradient() if gradients else photograph(5, HEIGHT, WIDTH)
    return augmented(augment, encode(image, format="PNG"), HEIGHT, WIDTH)


@functools.cache
def theirs(
    crop: str, policy: str, jitter: float, flip: float, gradients: bool = False, kernel: str = "bicubic"
) -> Views:
    image = gradient() if gradients else photograph(5, HEIGHT, WIDTH)
    return views(image, build_chain(crop, policy, jitter, flip, SIZE, kernel), COUNT, seed=1)


soak = pytest.mark.soak
TIMMS = {"rand_augment": "rand-m9-mstd0.5-inc1", "auto_augment": "original"}


def section(
    crop: str = "rrc", policy: str = "none", jitter: float = 0.0, flip: float = 0.5, **fields: object
) -> Augment:
    return Augment(crop=crop, policy=policy, color_jitter=jitter, flip=flip, **fields)  # type: ignore[arg-type]


# Where crops lie


@pytest.mark.parametrize("crop", ["rrc", pytest.param("rrc_linear", marks=soak)])
def test_crops_are_distributed_as_the_references(crop: str) -> None:
    worst, found = smallest_p(geometry, ours(section(crop), True), theirs(crop, "none", 0.0, 0.5, True))
    assert worst > ALPHA, found


@soak
def test_simple_random_crops_are_distributed_as_the_references() -> None:
    """Their size is fixed; their place is not, and takes few values."""
    mine, reference = (geometry(each) for each in (ours(section("src"), True), theirs("src", "none", 0.0, 0.5, True)))
    for name in ("column", "row"):
        assert stats.ks_2samp(mine[name].round(), reference[name].round()).pvalue > ALPHA


def flips(images: Views) -> NDArray[np.int64]:
    return (images[:, :, 0, 0].mean(axis=1) > images[:, :, -1, 0].mean(axis=1)).astype(np.int64)


def test_as_many_views_are_mirrored() -> None:
    reference = flips(theirs("rrc", "none", 0.0, 0.5, True))
    assert same_shares(flips(ours(section(), True)), reference) > ALPHA
    assert same_shares(flips(ours(section(flip=0.4), True)), reference) < PLANTED


@pytest.mark.parametrize(
    "planted",
    [section(scale=(0.2, 1.0)), pytest.param(section(ratio=(0.9, 1 / 0.9)), marks=soak)],
    ids=["scale", "ratio"],
)
def test_another_crop_is_found_out(planted: Augment) -> None:
    assert smallest_p(geometry, ours(planted, True), theirs("rrc", "none", 0.0, 0.5, True))[0] < PLANTED


# What views look like


@pytest.mark.parametrize(
    ("crop", "policy", "jitter"),
    [
        ("rrc", "three_augment", 0.3),
        *(
            pytest.param(*case, marks=soak)
            for case in (
                ("rrc", "none", 0.0),
                ("center", "none", 0.3),
                ("src", "three_augment", 0.3),
                ("rrc", "rand_augment", 0.0),
                ("rrc", "auto_augment", 0.0),
            )
        ),
    ],
)
def test_views_look_as_the_references(crop: str, policy: str, jitter: float) -> None:
    reference = theirs(crop, TIMMS.get(policy, policy), jitter, 0.5)
    worst, found = smallest_p(appearance, ours(section(crop, policy, jitter)), reference)
    assert worst > ALPHA, found


@soak
def test_random_kernels_look_as_timms() -> None:
    reference = theirs("rrc", "none", 0.0, 0.5, kernel="random")
    worst, found = smallest_p(appearance, ours(section(interpolation="random")), reference)
    assert worst > ALPHA, found


@soak
@pytest.mark.parametrize(
    ("planted", "reference"),
    [
        (section("center", jitter=0.2), ("center", "none", 0.3)),
        (section("rrc", "three_augment", 0.0), ("rrc", "three_augment", 0.3)),
        (section("rrc", "auto_augment"), ("rrc", TIMMS["rand_augment"], 0.0)),
        (section("rrc", "rand_augment", rand_magnitude=5.0), ("rrc", TIMMS["rand_augment"], 0.0)),
    ],
    ids=["jitter", "no jitter", "policy", "magnitude"],
)
def test_other_views_are_found_out(planted: Augment, reference: tuple[str, str, float]) -> None:
    worst, found = smallest_p(appearance, ours(planted), theirs(*reference, 0.5))
    assert worst < PLANTED, found


def kinds(images: Views) -> NDArray[np.int64]:
    """Of 3-Augment's views without jitter: 0 greyscale, 1 solarised, 2 blurred."""
    grey = (images.max(axis=3) == images.min(axis=3)).all(axis=(1, 2))
    dark = images.max(axis=(1, 2, 3)) < 128
    return np.where(grey, 0, np.where(dark, 1, 2))


@soak
def test_as_many_views_are_grey_solarised_and_blurred() -> None:
    mine, reference = ours(section("center", "three_augment")), theirs("center", "three_augment", 0.0, 0.5)
    assert same_shares(kinds(mine), kinds(reference)) > ALPHA
    assert same_shares(kinds(mine), np.array([0, 1, 2, 2] * (COUNT // 4))) < PLANTED
    blurred = [appearance(each[kinds(each) == 2])["sharpness"] for each in (mine, reference)]
    assert stats.ks_2samp(*blurred).pvalue > ALPHA


@soak
@pytest.mark.parametrize("policy", ["rand_augment", "auto_augment"])
def test_as_many_views_are_left_alone(policy: str) -> None:
    """The whole image, unflipped: no operation at all, or one that changes nothing."""
    plain = augmented(section("center", flip=0.0), encode(photograph(5, HEIGHT, WIDTH), format="PNG"), HEIGHT, WIDTH)[0]

    def untouched(images: Views) -> NDArray[np.int64]:
        gap = np.abs(images.astype(np.int16) - plain).mean(axis=(1, 2, 3))
        return (gap < 0.5).astype(np.int64)

    mine, reference = ours(section("center", policy, flip=0.0)), theirs("center", TIMMS[policy], 0.0, 0.0)
    assert same_shares(untouched(mine), untouched(reference)) > ALPHA
    if policy == "rand_augment":
        other = theirs("center", "rand-m9-mstd0.5-inc1-p0.4", 0.0, 0.0)
        assert same_shares(untouched(mine), untouched(other)) < PLANTED


@soak
@pytest.mark.parametrize("policy", ["three_augment", "rand_augment", "auto_augment"])
@pytest.mark.parametrize("crop", ["rrc", "src"])
def test_views_of_a_real_photograph_look_as_the_references(shared_data: Path, policy: str, crop: str) -> None:
    path = sorted((shared_data / "imagenet-sample").glob("*/*"))[40]
    image = Image.open(path).convert("RGB")
    jitter = 0.3 if policy == "three_augment" else 0.0
    mine = augmented(section(crop, policy, jitter), np.fromfile(path, np.uint8), image.height, image.width)
    reference = views(image, build_chain(crop, TIMMS.get(policy, policy), jitter, 0.5, SIZE), COUNT, seed=2)
    worst, found = smallest_p(appearance, mine, reference)
    assert worst > ALPHA, found
