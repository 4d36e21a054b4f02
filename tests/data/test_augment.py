"""What follows the crop, against PIL and torchvision, and the hand-over. Differences are of uint8 values, 0 to 255."""

from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image

from deit_fast.data.loader.dali import import_dali
from deit_fast.data.loader.pipeline import train_inputs, train_pipeline
from deit_fast.recipe.sections import Augment
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
    run,
    run_on_pixels,
    squares,
)


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
    ("augment", "most"),
    [
        (Augment(), 96),
        (Augment(crop="src"), 98),
        (Augment(crop="pad", interpolation="random"), 100),
        (Augment(crop="rrc_linear", interpolation="random"), 100),
        (Augment(policy="rand_augment", color_jitter=0.0), 207),
        (Augment(policy="auto_augment", color_jitter=0.0), 207),
    ],
    ids=["rrc", "src", "pad", "rrc_linear", "rand_augment", "auto_augment"],
)
def test_the_gpu_graph_can_be_defined(augment: Augment, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU nothing runs, but DALI checks in the definition already that predicates are on the CPU.

    most: operators. Each costs a GPU's host some microseconds per batch.
    """
    defined = []
    monkeypatch.setattr(import_dali().Pipeline, "build", lambda self: defined.append(self))
    train_pipeline(augment, SIZE, lambda: [], 4, torch.device("cuda", 0), threads=1)
    assert [output.device for output in defined[0]._graph_out] == ["gpu"]
    operators, rest = set(), [output.source for output in defined[0]._graph_out]
    while rest:
        operator = rest.pop()
        if operator not in operators:
            operators.add(operator)
            rest += [
                node.source for given in operator.inputs for node in (given if isinstance(given, list) else [given])
            ]
    assert 10 < len(operators) <= most


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
        policy_op=np.stack([np.arange(30) % 15, np.full(30, -1)], axis=1).astype(np.int32),
        policy_level=np.full((30, 2), 9, np.float32),
    )
    cpu, gpu = (run(augment, encoded, drawn, device=torch.device(name)) for name in ("cpu", "cuda"))
    gap = np.abs(cpu.astype(int) - gpu.astype(int)).mean(axis=(1, 2, 3))
    assert np.median(gap) < 1.5, gap
    assert gap.max() < 8, gap
