"""The native path's operations against PIL, timm and DALI's graph. Differences are of uint8 values, 0 to 255."""

import ctypes
import shutil
import subprocess
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import correlate1d

from deit_fast.data import native
from deit_fast.data.augment.native_graph import native_policy
from deit_fast.data.augment.operations import Operation
from deit_fast.data.augment.policies import OPERATIONS
from deit_fast.data.augment.policy_graph import find_operations, native_functions, operation_arguments
from deit_fast.data.augment.view_params import BLUR, GREYSCALE, SOLARISE
from deit_fast.data.loader.backend import choose_backend
from deit_fast.recipe.sections import Augment
from deit_fast.runtime.errors import RunError
from tests.oracles import operations as oracle
from tests.oracles import three_augment
from tests.views import CPU, SIZE, difference, photograph, run_on_pixels, squares

pytestmark = pytest.mark.skipif(native.library() is None, reason="the package was built without a C compiler")

NONE = -1
_WARPED = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}


def apply(
    images: list[Image.Image], policy: tuple[NDArray, NDArray] | None = None, **given: object
) -> NDArray[np.uint8]:
    """Each image as a view of itself, S x S, after the operations: `given` are fields of native.VIEW."""
    pixels = [np.asarray(image) for image in images]
    rows = np.zeros(len(pixels), native.VIEW)
    rows["image"], rows["geometry"][:, 2:] = np.arange(len(pixels)), [each.shape[:2] for each in pixels]
    for name, value in ({"operation": NONE, "order": NONE, "sigma": 1.0} | given).items():
        rows[name] = value
    size = len(pixels[0])
    out = np.empty((len(pixels), size, size, 3), np.uint8)
    native.make_views(pixels, rows, native.WINDOW_FIRST, size, 1, out, *(policy or ()))
    return out


def policy(names: list[list[str]], levels: object, signs: object, size: int) -> tuple[NDArray, NDArray]:
    """The operations by name, [B][n], or "" for none, as `make_views` takes them. levels, signs: [B, n]."""
    ids = np.array([[OPERATIONS.index(name) if name else -1 for name in each] for each in names], np.int32)
    given = operation_arguments(OPERATIONS, ids, np.float32(levels), np.float32(signs), size)
    return native_policy(*given.values(), np.array(native_functions(OPERATIONS), np.int32))


def tiny(size: int) -> list[Image.Image]:
    """Noise of a few pixels, where every pixel is on a border."""
    rng = np.random.default_rng(size)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)) for _ in range(6)]


# 3-Augment and the jitter


@pytest.mark.parametrize("operation", [NONE, GREYSCALE, SOLARISE])
@pytest.mark.parametrize("images", [squares(6), tiny(1), tiny(5)], ids=["photographs", "1 px", "5 px"])
def test_jitter_in_all_orders_is_pils(images: list[Image.Image], operation: int) -> None:
    orders = np.array([*permutations(range(3))], np.int32)
    factors = np.random.default_rng(0).uniform(0.4, 1.6, (6, 3)).astype(np.float32)
    views = apply(images, operation=operation, order=orders, factors=np.take_along_axis(factors, orders, 1))
    done = images if operation == NONE else [three_augment.three_augment(each, operation, 1.0) for each in images]
    expected = [three_augment.color_jitter(*each) for each in zip(done, factors, orders, strict=True)]
    assert difference(views, expected) == (0, 0, 0)
    assert difference(views, images)[0] > 1


@pytest.mark.parametrize("sigma", [0.1, 0.34, 0.5, 0.99, 1.3, 1.66, 1.99])
@pytest.mark.parametrize("size", [1, 2, 5, SIZE])
def test_blur_is_the_gaussian(sigma: float, size: int) -> None:
    """In float64, over three standard deviations, reflected at the border without repeating the edge; rounded."""
    images = squares(2) if size == SIZE else tiny(size)
    exact = float(np.float32(sigma))
    distances = np.arange(-np.ceil(3 * np.float32(sigma)), np.ceil(3 * np.float32(sigma)) + 1)
    weights = np.exp(-(distances**2) / (2 * exact**2))
    expected = np.stack([np.asarray(image, float) for image in images])
    for axis in (1, 2):
        expected = correlate1d(expected, weights / weights.sum(), axis=axis, mode="mirror")
    views = apply(images, operation=BLUR, sigma=sigma)
    assert np.abs(views - expected).max() < 0.5 + 1e-4


def test_blur_is_followed_by_the_jitter() -> None:
    images = squares(1)
    order, factors = np.int32([[2, 0, 1]]), np.float32([[1.2, 0.8, 0.7]])
    blurred = [Image.fromarray(each) for each in apply(images, operation=BLUR, sigma=1.5)]
    expected = [three_augment.color_jitter(blurred[0], factors[0][[1, 2, 0]], order[0])]
    assert difference(apply(images, operation=BLUR, sigma=1.5, order=order, factors=factors), expected) == (0, 0, 0)


# Policies


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [SIZE, 37])
def test_one_operation_is_timms(name: str, size: int) -> None:
    """To the bit; a warp's float32 weights truncate another value to 1 less in one of a hundred at most."""
    levels = np.repeat(np.float32([0.0, 2.7, 7.9, 8.6, 9.03, 10.0]), 2)
    signs = np.tile(np.float32([1, -1]), 6)
    images = [photograph(seed, size, size) for seed in range(12)]
    views = apply(images, policy([[name]] * 12, levels[:, None], signs[:, None], size))
    expected = [oracle.apply(i, name, float(m), s) for i, m, s in zip(images, levels, signs, strict=True)]
    mean, _, largest = difference(views, expected)
    assert mean <= (0.01 if name in _WARPED else 0)
    assert largest <= (1 if name in _WARPED else 0)
    assert name == "AutoContrast" or difference(views, images)[0] > 1


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [3, 4, 9])
def test_one_operation_on_a_few_pixels(name: str, size: int) -> None:
    images = tiny(size)
    signs = np.tile(np.float32([[1], [-1]]), (3, 1))
    views = apply(images, policy([[name]] * 6, np.full((6, 1), 7.3), signs, size))
    expected = [
        oracle.apply(image, name, float(np.float32(7.3)), float(s)) for image, (s,) in zip(images, signs, strict=True)
    ]
    assert difference(views, expected)[2] <= (1 if name in _WARPED else 0)


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "SharpnessIncreasing", "ContrastIncreasing"])
def test_flat_and_two_tone_images(name: str) -> None:
    """Histograms with one or two levels, and with fewer than 255 pixels beside the highest: PIL leaves these alone."""
    flat = Image.new("RGB", (SIZE, SIZE), (0, 90, 255))
    two, few = flat.copy(), flat.copy()
    two.paste((10, 91, 255), (0, 0, SIZE, SIZE // 3))
    few.paste((0, 3, 17), (0, 0, 15, 15))
    images = [flat, two, few]
    views = apply(images, policy([[name]] * 3, np.full((3, 1), 9), np.ones((3, 1)), SIZE))
    assert difference(views, [oracle.apply(image, name, 9.0, 1.0) for image in images]) == (0, 0, 0)


def test_pairs_in_a_row_and_skipping() -> None:
    """Every operation before and after another one, the second on the result of the first; -1 does nothing."""
    count = len(OPERATIONS)
    images = [photograph(seed, SIZE, SIZE) for seed in range(count)]
    pairs = [[OPERATIONS[first], OPERATIONS[(first + 9) % count]] for first in range(count)]
    signs = np.where(np.arange(2 * count) % 3, 1.0, -1.0).reshape(count, 2)
    views = apply(images, policy(pairs, np.full((count, 2), 9.2), signs, SIZE))
    for place, (pair, row) in enumerate(zip(pairs, signs, strict=True)):
        first = oracle.apply(images[place], pair[0], float(np.float32(9.2)), row[0])
        expected = oracle.apply(first, pair[1], float(np.float32(9.2)), row[1])
        # Solarising turns a difference of 1 at the threshold into one of 255 in a few pixels.
        mean, p99, _ = difference(views[place : place + 1], [expected])
        assert mean <= (0.05 if _WARPED & {*pair} else 0), pair
        assert p99 <= (4 if _WARPED & {*pair} else 0), pair
    second = [["", pair[1]] for pair in pairs]
    views = apply(images, policy(second, np.full((count, 2), 9.2), signs, SIZE))
    expected = [
        oracle.apply(i, pair[1], float(np.float32(9.2)), row[1])
        for i, pair, row in zip(images, pairs, signs, strict=True)
    ]
    assert difference(views, expected)[0] < 0.01


@pytest.mark.parametrize("name", ["three_augment", "rand_augment"])
def test_dalis_graph_makes_the_same(name: str) -> None:
    """The same drawn parameters: what differs is DALI's rounding, of Equalize and of a warp's pixels on an edge."""
    count = 12 if name == "three_augment" else 2 * len(OPERATIONS)
    rng, images = np.random.default_rng(0), [photograph(seed, SIZE, SIZE) for seed in range(count)]
    ids = np.stack([np.arange(count) % len(OPERATIONS), np.full(count, NONE)], axis=1).astype(np.int32)
    levels, signs = np.full((count, 2), 8.7, np.float32), np.where(rng.random((count, 2)) < 0.5, -1, 1)
    given = {"policy_op": ids, "policy_level": levels, "policy_sign": signs.astype(np.float32)}
    if name == "three_augment":
        order = np.array([*permutations(range(3))] * 2, np.int32)
        given = {"operation": np.arange(count, dtype=np.int32) % 3, "order": order}
        given |= {"sigma": rng.uniform(0.1, 2, count).astype(np.float32)}
        given |= {"jitter": rng.uniform(0.7, 1.3, (count, 3)).astype(np.float32)}
    augment = Augment(policy=name, color_jitter=0.3 if name == "three_augment" else 0.0)  # type: ignore[arg-type]
    dali, ours = (run_on_pixels(augment, images, backend=backend, **given) for backend in ("dali", "native"))
    for place in range(count):
        mean, p99, largest = difference(dali[place : place + 1], [Image.fromarray(ours[place])])
        assert mean < 0.35, (place, mean)
        assert p99 <= 1, (place, p99)
        assert largest <= (255 if name == "rand_augment" else 3), (place, largest)


def test_an_operation_without_a_native_function_leaves_it_to_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    rand = Augment(policy="rand_augment", color_jitter=0.0)
    assert [choose_backend(wanted, CPU, rand) for wanted in ("auto", "native", "dali")] == ["native", "native", "dali"]
    other = Operation("Other", lambda images, arguments, image_size: images)
    known = find_operations(OPERATIONS)
    monkeypatch.setattr("deit_fast.data.augment.policy_graph.find_operations", lambda names: [*known, other])
    assert choose_backend("auto", CPU, rand) == "dali"
    message = "run.image_backend='native': expected operations that have a native function, got Other; "
    with pytest.raises(RunError, match=f"^{message}"):
        choose_backend("native", CPU, rand)


def test_every_processor_makes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a build without the variants for newer processors, optimised otherwise."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    plain = tmp_path / "plain.so"
    options = ["-O1", "-std=gnu11", "-ffp-contract=off", "-DDEIT_FAST_PLAIN", "-shared", "-fPIC", "-pthread", "-w"]
    sources = sorted(Path(native.__file__).parent.glob("*.c"))
    subprocess.run([compiler, *options, *sources, "-lm", "-o", plain], check=True)
    count = len(OPERATIONS)
    images = [photograph(seed, SIZE, SIZE) for seed in range(count)]
    rng = np.random.default_rng(0)
    given = {"operation": np.arange(count) % 4 - 1, "sigma": rng.uniform(0.1, 2, count)}
    given |= {
        "order": np.stack([rng.permutation(3) for _ in range(count)]),
        "factors": rng.uniform(0.6, 1.4, (count, 3)),
    }
    drawn = policy([[name] for name in OPERATIONS], np.full((count, 1), 6.3), np.ones((count, 1)), SIZE)
    views, windows = [apply(images, drawn, **given)], [resized_windows()]
    monkeypatch.setattr(native, "library", lambda: ctypes.CDLL(str(plain)))
    views.append(apply(images, drawn, **given))
    windows.append(resized_windows())
    np.testing.assert_array_equal(*views)
    np.testing.assert_array_equal(*windows)


def resized_windows() -> NDArray[np.uint8]:
    """Views [64, 50, 50, 3] of windows from one pixel to 300, by both kernels."""
    rng, views = np.random.default_rng(1), np.zeros(64, native.VIEW)
    image = rng.integers(0, 256, (300, 300, 3), np.uint8)
    sides = rng.integers(1, 301, (64, 2))
    views["geometry"] = np.concatenate([(rng.random((64, 2)) * (301 - sides)).astype(int), sides], axis=1)
    views["operation"], views["order"], views["kernel"] = -1, -1, np.arange(64) % 2
    out = np.empty((64, 50, 50, 3), np.uint8)
    native.make_views([image], views, native.WINDOW_FIRST, 50, 1, out)
    return out
