"""The native image path: its resize is PIL's to the bit, its views are those of DALI's graph up to rounding."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data import native
from deit_fast.data.augment.view_params import draw_views, eval_geometry
from deit_fast.data.loader.backend import choose_backend
from deit_fast.data.loader.pipeline import eval_pipeline, train_inputs, train_pipeline
from deit_fast.recipe.sections import Augment
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.world import World
from deit_fast.training.backend import settle_backend
from tests.views import CPU, PLAIN, difference, six_photographs

pytestmark = pytest.mark.skipif(native.library() is None, reason="the package was built without a C compiler")
ROOT = Path(__file__).parents[2]
KERNELS = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
SIX = np.int32([(120, 160), (160, 120), (97, 131), (200, 90), (80, 80), (333, 500)])


def resized(image: Image.Image, width: int, height: int, kernel: Image.Resampling) -> Image.Image:
    """PIL's, the width first, as it was before Pillow 13, which begins with the side that shrinks more."""
    return image.resize((width, image.height), kernel).resize((width, height), kernel)


def make(image: NDArray[np.uint8], size: int, border: int, **drawn: object) -> NDArray[np.uint8]:
    view = np.zeros(1, native.VIEW)
    view["operation"], view["order"] = -1, -1
    for name, value in drawn.items():
        view[name] = value
    out = np.empty((1, size, size, 3), np.uint8)
    native.make_views([image], view, border, size, 1, out)
    return out[0]


@pytest.mark.parametrize("size", [1, 5, 16, 17, 64])
def test_windows_are_pils_to_the_bit(size: int) -> None:
    rng = np.random.default_rng(size)
    for number in range(40):
        height, width = rng.integers(1, 200, 2)
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        tall, wide = rng.integers(1, height + 1), rng.integers(1, width + 1)
        top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
        cut = Image.fromarray(image[top : top + tall, left : left + wide])
        expected = np.asarray(resized(cut, size, size, KERNELS[number % 2]))
        flip = number // 2 % 2
        view = make(image, size, native.WINDOW_FIRST, geometry=(top, left, tall, wide), kernel=number % 2, flip=flip)
        assert np.array_equal(view, expected[:, ::-1] if flip else expected), (size, number)


@pytest.mark.parametrize("border", [native.REFLECTED, native.BLACK])
def test_windows_that_hang_over_the_border_are_pils_to_the_bit(border: int) -> None:
    rng = np.random.default_rng(border)
    for number in range(30):
        image = rng.integers(0, 256, (*rng.integers(9, 200, 2), 3), np.uint8)
        size = int(rng.integers(8, 60))
        height, width = size + rng.integers(0, 40, 2)
        top, left = rng.integers(-4, height + 5 - size), rng.integers(-4, width + 5 - size)
        whole = np.asarray(resized(Image.fromarray(image), width, height, KERNELS[number % 2]))
        mode = "reflect" if border == native.REFLECTED else "constant"
        whole = np.pad(whole, ((4, 4), (4, 4), (0, 0)), mode=mode)  # type: ignore[call-overload]
        expected = whole[top + 4 : top + 4 + size, left + 4 : left + 4 + size]
        view = make(image, size, border, geometry=(height, width, top, left), kernel=number % 2)
        assert np.array_equal(view, expected), number


RECIPES = [
    PLAIN,
    Augment(),
    Augment(interpolation="random"),
    Augment(crop="src"),
    Augment(crop="pad", policy="none", color_jitter=0.0),
    Augment(crop="rrc_linear", interpolation="bilinear"),
    Augment(crop="center", policy="auto_augment", color_jitter=0.0),
    Augment(policy="rand_augment", color_jitter=0.0),
]


@pytest.mark.parametrize("augment", RECIPES, ids=lambda each: f"{each.crop}-{each.policy}-{each.interpolation}")
def test_views_are_those_of_dalis_graph_up_to_rounding(augment: Augment) -> None:
    indices = np.arange(6)
    drawn = draw_views(augment, 64, 0, 0, indices, np.zeros(6, np.int64), SIX)
    inputs = train_inputs(augment, 64, six_photographs(), drawn)
    ours, theirs = (
        train_pipeline(augment, 64, lambda: inputs, 6, CPU, 2, backend=backend).run().permute(0, 2, 3, 1).numpy()
        for backend in ("native", "dali")
    )
    mean, _, _ = difference(ours, theirs)
    assert not np.array_equal(ours, np.zeros_like(ours))
    assert mean < (1.0 if augment.policy in ("rand_augment", "auto_augment") else 0.5)


def test_threads_and_shared_decoding_change_no_pixel() -> None:
    augment, photographs = Augment(), six_photographs()
    repeated, indices = [each for each in photographs for _ in range(3)], np.repeat(np.arange(6), 3)
    drawn = draw_views(augment, 32, 0, 0, indices, np.tile(np.arange(3), 6), SIX[indices])

    def run(once: bool, threads: int) -> torch.Tensor:
        inputs = train_inputs(augment, 32, repeated, drawn, decode_once=once)
        return train_pipeline(augment, 32, lambda: inputs, 18, CPU, threads, once, backend="native").run()

    found = [run(once, threads) for once in (False, True) for threads in (1, 3)]
    assert all(torch.equal(each, found[0]) for each in found)


def test_evaluation_is_the_graphs() -> None:
    photographs = six_photographs()
    inputs = [photographs, eval_geometry(SIX, 56, 0.875)]
    ours, theirs = (
        eval_pipeline(56, lambda: inputs, 6, CPU, 1, "bicubic", backend).run().permute(0, 2, 3, 1).numpy()
        for backend in ("native", "dali")
    )
    assert difference(ours, theirs)[0] < 0.1


def test_without_the_library_dalis_graph_makes_the_views(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend("auto", CPU, Augment()) == "native"
    assert choose_backend("native", torch.device("cuda", 0), Augment()) == "dali"
    monkeypatch.setattr(native, "library", lambda: None)
    assert choose_backend("auto", CPU, Augment()) == "dali"
    with pytest.raises(
        RunError, match=r"^run.image_backend='native': expected the package to be built with a C"
    ) as error:
        choose_backend("native", CPU, Augment())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wanted", "before", "resumed", "expected", "said"),
    [
        ("auto", "dali", False, "native", 0),  # a new run
        ("auto", "dali", True, "dali", 0),  # goes on as it began
        ("auto", "native", True, "native", 0),
        ("native", "dali", True, "native", 1),
        ("dali", "native", True, "dali", 1),
    ],
)
def test_a_run_keeps_to_what_made_its_pixels_or_says_so(
    wanted: str, before: str, resumed: bool, expected: str, said: int
) -> None:
    recipe = SimpleNamespace(run=SimpleNamespace(image_backend=wanted), augment=Augment())
    state = SimpleNamespace(image_backend=before)
    lines = settle_backend(recipe, state, World(0, 1, CPU), resumed)  # type: ignore[arg-type]
    assert (state.image_backend, len(lines)) == (expected, said)


def test_a_machine_without_the_library_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    recipe = SimpleNamespace(run=SimpleNamespace(image_backend="auto"), augment=Augment())
    state = SimpleNamespace(image_backend="native")
    lines = settle_backend(recipe, state, World(0, 1, CPU), True)  # type: ignore[arg-type]
    assert lines == ["pixels were made by native before, by dali from here on (run.image_backend)"]


def test_a_build_without_a_compiler_is_whole(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)],
        cwd=ROOT, env={"CC": "/bin/false", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*.so"))
